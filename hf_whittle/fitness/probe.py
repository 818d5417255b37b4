"""A fitness that trains: the perplexity of a subnet's student after a few steps of distillation on fixed text."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..checks import check_integers, check_numbers, check_positive
from ..cost.counts import flops_per_token, training_flops_per_token
from ..cost.models import forward_flops_per_token
from ..errors import DataError, VocabularyError, WhittleError
from ..evaluation import as_input_ids, cross_entropy, evaluating, perplexity
from ..extraction.extraction import extract_subnet
from ..fingerprints import fingerprint, model_fingerprint
from ..loss.divergences import LossWeights
from ..loss.fused import fused_distillation_loss
from ..loss.targets import DenseTargets
from ..models.heads import Head, head_of, logit_scale, output_layer
from ..models.placement import input_device, is_sharded
from ..models.weights import check_no_subnet, check_plain_weights
from ..subnet import SubnetConfig
from .base import Fitness
from .healed import HealedPerplexity

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel


@dataclass(frozen=True)
class ProbeConfig:
    """Training of a probe: AdamW on all parameters, a warm-up, a cosine decay to 0, gradients clipped at norm 1.

    Raises:
        ValueError: if a value is out of range.
    """

    steps: int = field(default=20, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=16, metadata={"help": "Blocks in a step."})
    learning_rate: float = field(default=4e-3, metadata={"help": "Highest learning rate."})
    warmup: float = field(default=0.1, metadata={"help": "Share of the steps in which the learning rate rises."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of matrices."})
    alpha: float = field(default=0.2, metadata={"help": "Weight of cross-entropy."})
    beta: float = field(default=0.8, metadata={"help": "Weight of the divergence from the teacher; 0 needs none."})
    temperature: float = field(default=0.9, metadata={"help": "Temperature of both distributions."})
    seed: int = field(default=0, metadata={"help": "Seed of dropout, where a model has it."})

    def __post_init__(self) -> None:
        check_integers(self, {"steps": 1, "batch_size": 1, "seed": 0})
        check_positive(self, "learning_rate", "temperature")
        check_numbers(self, "warmup", "weight_decay", "alpha", "beta")

    def rate(self, step: int, steps: int) -> float:
        """Share of the highest learning rate at a step, counted from 0."""
        warmup = math.ceil(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Probe(Fitness):
    """Perplexity of a subnet's student after a few steps of distillation, the same ones for every subnet.

    The teacher's last hidden states are computed once, when the fitness is made, and kept in its own precision. A share
    of the tokens is a share of the steps.

    Args:
        supernet (`SuperNetModel`): the super-network.
        train_blocks (`datasets.Dataset` or `torch.Tensor`): token ids to train on, `(blocks, block_size)`; the first
            `steps * batch_size` are used.
        eval_blocks (`datasets.Dataset` or `torch.Tensor`): held-out token ids.
        config (`ProbeConfig`, *optional*): settings of the training.
        teacher (`PreTrainedModel`, *optional*): model with the same vocabulary; the full super-network by default.
        healing (`HealedPerplexity`, *optional*): fitness that heals the students before they are trained.

    Raises:
        DataError: if there are too few blocks to train on.
        VocabularyError: if the teacher's vocabulary has another size.
        SubnetError: if a subnet is active in the teacher.
        WhittleError: if the super-network is sharded, or its or the teacher's logits are not a product with an output
            matrix.
    """

    name = "probe"

    def __init__(
        self,
        supernet: "SuperNetModel",
        train_blocks: "Dataset | torch.Tensor",
        eval_blocks: "Dataset | torch.Tensor",
        config: ProbeConfig | None = None,
        *,
        teacher: "PreTrainedModel | None" = None,
        healing: HealedPerplexity | None = None,
    ):
        if is_sharded(supernet):
            raise WhittleError(
                "a probe trains students of its own and needs the whole super-network in each process; use perplexity "
                "for a sharded one"
            )
        check_plain_weights(supernet, may_be_offloaded=True)
        self.supernet, self.config = supernet, config or ProbeConfig()
        vocab_size = supernet.config.vocab_size
        self.input_ids = as_input_ids(_first_blocks(train_blocks, self.config), vocab_size)
        self.eval_ids = as_input_ids(eval_blocks, vocab_size)
        self.healing = healing
        scale = logit_scale(supernet)
        if scale is None:
            raise _capped(supernet, "use another fitness")
        self._teacher, self._scale = teacher or supernet, scale
        check_no_subnet(self._teacher)
        if self.config.beta and self._teacher.config.vocab_size != vocab_size:
            raise VocabularyError(
                f"the teacher's vocabulary has {self._teacher.config.vocab_size} entries, that of the super-network "
                f"{vocab_size}; use a teacher with the same vocabulary, or beta=0"
            )
        self._targets = self._teacher_hidden_states() if self.config.beta else None

    @torch.no_grad()
    def _teacher_hidden_states(self) -> tuple[torch.Tensor, Head]:
        layer = output_layer(self._teacher)
        if layer is None:
            raise _capped(self._teacher, "use another teacher, or beta=0")
        device = input_device(self._teacher)
        with evaluating(self._teacher):
            hidden_states = [
                self._teacher.base_model(input_ids=batch.to(device), use_cache=False).last_hidden_state
                for batch in self.input_ids.split(self.config.batch_size)
            ]
        return layer.scale * torch.cat(hidden_states), head_of(layer)

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        student = self.student(subnet)
        devices = [student.device] if student.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.config.seed)
            self._train(student, self._steps(share))
        return perplexity(cross_entropy(student, self.eval_ids))

    def student(self, subnet: SubnetConfig) -> "PreTrainedModel":
        """Make the student to train; only parameters that require gradients are trained."""
        student = extract_subnet(self.supernet, subnet) if self.healing is None else self.healing.student(subnet)
        return student.float()

    def _steps(self, share: float) -> int:
        return max(1, round(share * self.config.steps))

    def _train(self, student: "PreTrainedModel", steps: int) -> None:
        config = self.config
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        schedule = LambdaLR(optimizer, lambda step: config.rate(step, steps))
        student.train()
        for step in range(steps):
            self._loss(student, slice(step * config.batch_size, (step + 1) * config.batch_size)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    def _loss(self, student: "PreTrainedModel", rows: slice) -> torch.Tensor:
        """Mean distillation loss of the tokens of some blocks."""
        batch, head = self.input_ids[rows].to(student.device), student.get_output_embeddings()
        hidden_states = student.base_model(input_ids=batch, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        hidden_states = self._scale * hidden_states
        labels = batch[:, 1:].flatten()
        if self._targets is None:
            targets = DenseTargets(hidden_states.detach(), Head(head.weight.detach()))
        else:
            of_teacher, of_head = self._targets
            targets = DenseTargets(of_teacher[rows, :-1].flatten(0, 1).to(hidden_states.device), of_head)
        weights = LossWeights(self.config.alpha, self.config.beta, self.config.temperature)
        loss = fused_distillation_loss(hidden_states, Head(head.weight, head.bias), targets, labels, weights)
        return loss.total / len(labels)

    def tokens(self, share: float = 1.0) -> int:
        return self._steps(share) * self.config.batch_size * self.input_ids.shape[1] + self.eval_ids.numel()

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        source, length = self.supernet.full_config, self.input_ids.shape[1]
        trained = self._steps(share) * self.config.batch_size * length
        evaluated = self.eval_ids.numel() * flops_per_token(source, subnet, sequence_length=self.eval_ids.shape[1])
        healing = 0 if self.healing is None else self.healing.healing_flops(subnet)
        return healing + trained * training_flops_per_token(source, subnet, sequence_length=length) + evaluated

    @property
    def preparation(self) -> dict[str, int]:
        """One-time cost: teacher forward passes and gathering of healing moments."""
        cost = super().preparation if self.healing is None else self.healing.preparation
        if not self.config.beta:
            return cost
        tokens, length = self.input_ids.numel(), self.input_ids.shape[1]
        flops = tokens * forward_flops_per_token(self._teacher, length)
        return {"tokens": cost["tokens"] + tokens, "flops": cost["flops"] + flops}

    @property
    def reads_token_ids(self) -> bool:
        return True

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **dataclasses.asdict(self.config),
            "data": [fingerprint(self.input_ids), fingerprint(self.eval_ids)],
            "model": model_fingerprint(self.supernet),
            "teacher": model_fingerprint(self._teacher) if self.config.beta else None,
            "healing": None if self.healing is None else self.healing.settings,
        }


def _capped(model: "PreTrainedModel", remedy: str) -> WhittleError:
    if model.get_output_embeddings().weight.is_meta:
        return WhittleError(
            f"a probe multiplies with the output matrix of the {type(model).__name__} itself, which is offloaded; keep "
            f"it on a device by the device_map, or {remedy}"
        )
    return WhittleError(
        f"the logits of a {type(model).__name__} are not a product with an output matrix, which a probe needs; {remedy}"
    )


def _first_blocks(blocks: "Dataset | torch.Tensor", config: ProbeConfig) -> "Dataset | torch.Tensor":
    """The blocks that a probe trains on."""
    needed = config.steps * config.batch_size
    if len(blocks) < needed:
        raise DataError(
            f"{config.steps} steps of {config.batch_size} blocks need {needed} blocks of text to train on, got "
            f"{len(blocks)}; give more text, or fewer steps"
        )
    return blocks[:needed] if isinstance(blocks, torch.Tensor) else blocks.select(range(needed))
