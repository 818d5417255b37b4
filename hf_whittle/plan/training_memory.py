"""Memory of a training and of evaluations, rehearsed: by the code that runs, on tensors without memory."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from ..architectures.registry import get_architecture
from ..evaluation import cross_entropy
from ..evaluation.batches import tokens_at_a_time
from ..loss.fused import fused_distillation_loss
from ..loss.targets import DenseTargets, Restriction, SparseTargets, Targets, dense_targets
from ..models.heads import OutputLayer, head_of, in_place_of, logit_scale
from .models import build
from .rehearsal import Rehearsal, rehearse, rehearsed_once

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig

_STATES = {
    "ademamix_8bit": 3,
    "ademamix": 12,
    "lion_8bit": 1,
    "rmsprop_bnb_8bit": 1,
    "schedule_free_sgd": 4,
    "8bit": 2,
    "4bit": 1,
    "adafactor": 0.1,
    "sgd": 0,
    "lomo": 0,
    "lion": 4,
    "rmsprop": 4,
    "adagrad": 4,
}
"""Bytes of an optimizer's states for each parameter, by the first part of its name found; 8 for others, as AdamW."""
_ON_GPU = {"forward_kl": 2}
"""Tensors of a whole chunk of logits that the loss makes on a GPU, and in small tiles on a CPU; 8 for the others."""


def optimizer_bytes(args: "DistillationConfig", parameters: int) -> int:
    """Bytes of the states of the optimizer of a training."""
    name = text_of(args.optim)
    each = next((value for part, value in _STATES.items() if part in name), 8)
    return int(each * parameters)


def text_of(choice: Any) -> str:
    """An argument that is an enumeration or text, as text."""
    return str(getattr(choice, "value", choice))


@dataclass(frozen=True)
class StepMemory:
    """Bytes beside weights and optimizer.

    Args:
        activations (`int`): kept by forward passes, and targets.
        logits (`int`): added by the loss.
        peak (`int`): most at the same time, with gradients.
    """

    activations: int
    logits: int
    peak: int


@dataclass(frozen=True)
class Step:
    """A training step to rehearse.

    Args:
        args (`DistillationConfig`): arguments of the training.
        block_size (`int`): tokens of a block.
        draws (`int`, *optional*): entries of a token in a store of targets; without it, the teacher runs.
        on_cpu (`bool`, *optional*, defaults to `True`): whether the loss works as on a CPU.
    """

    args: "DistillationConfig"
    block_size: int
    draws: int | None = None
    on_cpu: bool = True

    @property
    def settings(self) -> tuple[Any, ...]:
        """What determines the step."""
        named = {"output_dir", "run_name"}
        args = {name: value for name, value in self.args.to_dict().items() if name not in named}
        return json.dumps(args, sort_keys=True, default=str), self.block_size, self.draws, self.on_cpu

    @property
    def chunk(self) -> int:
        """Rows whose logits are held at a time."""
        return self.args.chunk_size(self.on_cpu)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision as in the training."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16 or self.args.fp16):
            yield

    @rehearsed_once
    def memory(
        self, student: PreTrainedConfig, teacher: PreTrainedConfig | None, dtype: torch.dtype = torch.float32
    ) -> StepMemory:
        """Memory of the step, for a student that learns from a teacher of a `dtype`, or from text alone without one."""
        batch = self.args.train_batch_size
        with rehearse(rows=2 * self.chunk) as rehearsal:
            trained, of_teacher = self._trained(student), None if teacher is None else build(teacher, dtype).eval()
            input_ids = torch.zeros(batch, self.block_size, dtype=torch.long)
            start = rehearsal.begin()
            for _ in range(min(2, self.args.gradient_accumulation_steps)):
                before = rehearsal.held
                with self.autocast():
                    targets = self._targets(of_teacher, input_ids)
                    if isinstance(targets, DenseTargets) and teacher is not None:
                        targets = self._restricted(targets, student.vocab_size, teacher.vocab_size)
                    total, activations, logits = self._loss(rehearsal, trained, targets, input_ids)
                total.backward()
                del total, targets
        kept, logits = self._hidden_states(student, teacher), logits + self._extra(student)
        peak = max(rehearsal.highest, activations + logits) - start
        return StepMemory(activations - before + kept, logits, peak + kept)

    def _trained(self, config: PreTrainedConfig) -> Any:
        model = build(config).train()
        if self.args.activation_checkpointing:
            given: Any = self.args.activation_checkpointing_kwargs
            options: dict[str, Any] = dict(given or {})
            own = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
            model.activation_checkpointing_enable(options or None, **own)
        return model

    def _loss(
        self, rehearsal: Rehearsal, student: Any, targets: Targets | None, input_ids: torch.Tensor
    ) -> tuple[torch.Tensor, int, int]:
        """The loss, of text alone without targets, what is held before it, and the bytes that it adds."""
        head, seen = _head(student), []

        def compute(hidden_states: torch.Tensor) -> torch.Tensor:
            seen.append(rehearsal.restart())
            flat, own = hidden_states.flatten(0, 1), None if head is None else head_of(head)
            rows = input_ids.flatten()
            return fused_distillation_loss(flat, own, targets, rows, self.args.loss_weights, self.chunk).total

        if head is not None:
            with in_place_of(head, compute):
                total = student(input_ids=input_ids, use_cache=False).logits
        elif targets is not None:
            total = compute(student(input_ids=input_ids, use_cache=False).logits)
        else:
            seen.append(rehearsal.held)
            total = student(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        return total, seen[0], rehearsal.peak - seen[0]

    def _targets(self, teacher: Any, input_ids: torch.Tensor) -> Targets | None:
        if not self.args.has_teacher:
            return None
        if teacher is None:
            ids = torch.zeros(input_ids.numel(), self.draws or 1, dtype=torch.long)
            return SparseTargets(ids, ids.float(), tail=False, entropy=torch.zeros(len(ids)))
        with torch.no_grad():
            return dense_targets(teacher, _head(teacher), input_ids=input_ids, use_cache=False)

    def _restricted(self, targets: DenseTargets, size: int, of_teacher: int) -> DenseTargets:
        """Targets for a student whose vocabulary has `size` of the teacher's entries."""
        if size >= of_teacher:
            return targets
        kept, dropped = torch.arange(size), torch.arange(size, of_teacher)
        if self.args.dropped_tokens == "renormalized":
            return targets.restricted(Restriction(kept))
        return targets.restricted(Restriction(kept, dropped, torch.zeros_like(dropped)))

    def _hidden_states(self, student: PreTrainedConfig, teacher: PreTrainedConfig | None) -> int:
        """Bytes of the teacher's hidden states after the student's layers, if the student learns from them."""
        if not self.args.hidden_weight or teacher is None:
            return 0
        tokens = self.args.train_batch_size * self.block_size
        return 4 * tokens * teacher.hidden_size * student.num_hidden_layers

    def _extra(self, student: PreTrainedConfig) -> int:
        """Bytes of temporary tensors of the loss that a rehearsal does as on a CPU."""
        if self.on_cpu or not self.args.has_teacher:
            return 0
        rows = min(self.chunk, self.args.train_batch_size * self.block_size)
        return 4 * _ON_GPU.get(self.args.divergence, 8) * rows * student.vocab_size

    @rehearsed_once
    def evaluation(self, student: PreTrainedConfig) -> int:
        """Bytes of an evaluation in a training, beside weights and optimizer."""
        with rehearse(rows=2 * self.chunk) as rehearsal, torch.no_grad():
            model = build(student).eval()
            input_ids = torch.zeros(self.args.eval_batch_size, self.block_size, dtype=torch.long)
            start = rehearsal.begin()
            with self.autocast():
                self._loss(rehearsal, model, None, input_ids)
        return rehearsal.highest - start


def _head(model: Any) -> OutputLayer | None:
    scale = logit_scale(model)
    return None if scale is None else OutputLayer(model.get_output_embeddings(), scale)


def blocks_at_a_time(length: int, on_cpu: bool, evaluated: PreTrainedConfig | None) -> int:
    """Blocks of a length that a model is evaluated on at a time by default; without logits, if there is no model."""
    in_chunks = evaluated is None or get_architecture(evaluated).logit_factor(evaluated) is not None
    return max(1, tokens_at_a_time(on_cpu, 0 if in_chunks or evaluated is None else evaluated.vocab_size) // length)


@rehearsed_once
def cross_entropy_memory(
    config: PreTrainedConfig, blocks: int, block_size: int, dtype: torch.dtype = torch.float32
) -> int:
    """Bytes beside weights of evaluating a model on so many blocks at a time."""
    with rehearse() as rehearsal:
        model = build(config, dtype)
        input_ids = torch.zeros(blocks, block_size, dtype=torch.long)
        start = rehearsal.restart()
        cross_entropy(model, input_ids, blocks)
    return rehearsal.peak - start
