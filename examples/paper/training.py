"""One training of a student, and how it is judged."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from hf_whittle.cost.models import forward_flops_per_token
from hf_whittle.distillation.store.encodings import Samples, TopK
from hf_whittle.evaluation.blocks import sums_of_blocks
from hf_whittle.loss.divergences import LossWeights
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, Targets
from hf_whittle.models.heads import Head, head_of, output_layer

from .text import LENGTH, Text

BATCH = 8
CODE = ("loss", "distillation/store", "models", "architectures", "paper.training", "paper.text")


@dataclass(frozen=True)
class Distillation:
    """What is learned from a teacher; by default as in the paper.

    Args:
        alpha (`float`, *optional*, defaults to 0.2): weight of the cross-entropy; the divergence has the rest of 1.
        temperature (`float`, *optional*, defaults to 0.9): temperature of both distributions.
        top (`int`, *optional*): how many of the teacher's likeliest entries are seen, the others as one.
        draws (`int`, *optional*): how many samples of its distribution are seen in place of it.
    """

    alpha: float = 0.2
    temperature: float = 0.9
    top: int | None = None
    draws: int | None = None

    @property
    def weights(self) -> LossWeights:
        return LossWeights(self.alpha, 1 - self.alpha, self.temperature)

    @torch.no_grad()
    def seen(self, targets: DenseTargets, generator: torch.Generator) -> Targets:
        """The part of the teacher's distribution that is learned from, as a store would keep it."""
        if self.top is None and self.draws is None:
            return targets
        assert targets.head is not None
        size = len(targets.head.weight)
        probabilities = targets.logits(torch.arange(len(targets)), size, self.temperature).softmax(-1)
        encoding = TopK(size, self.top) if self.top is not None else Samples(size, self.draws or 1)
        numbers = torch.rand(len(targets), self.draws or 0, generator=generator, dtype=torch.float64)
        return encoding.decode(encoding.encode(probabilities, numbers.to(probabilities.device)))


PAPERS = Distillation()


@dataclass(frozen=True)
class Training:
    """AdamW on all parameters, a warm-up, a cosine decay to 0, gradients clipped at norm 1.

    Args:
        steps (`int`): steps of 8 blocks of 256 tokens.
        rate (`float`): highest learning rate.
        seed (`int`): seed of the order of the text, and of samples.
        distillation (`Distillation`, *optional*, defaults to that of the paper): how a teacher is learned from; text
            alone is, if `None`.
    """

    steps: int
    rate: float
    seed: int
    distillation: Distillation | None = PAPERS

    @property
    def tokens(self) -> int:
        return self.steps * BATCH * LENGTH

    @property
    def weights(self) -> LossWeights:
        return LossWeights(1.0, 0.0) if self.distillation is None else self.distillation.weights

    def share(self, step: int) -> float:
        """Share of the highest learning rate at a step, counted from 0."""
        warmup = math.ceil(0.1 * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


class Teacher:
    """A teacher's last hidden states of training blocks, each computed once and kept in a file in half precision.

    Args:
        model (`PreTrainedModel`): the teacher.
        text (`Text`): the text.
        folder (`Path`, *optional*): folder of the file; nothing is kept without it.
    """

    def __init__(self, model: PreTrainedModel, text: Text, folder: Path | None = None):
        self.model, self.text, self._kept = model, text, None
        layer: Any = output_layer(model)
        self.head = head_of(layer)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            shape = (len(text.train), LENGTH, model.config.hidden_size)
            self._kept = _mapped(folder / "states.npy", np.float16, shape)
            self._known = _mapped(folder / "known.npy", np.bool_, shape[:1])

    @torch.no_grad()
    def states(self, blocks: torch.Tensor) -> torch.Tensor:
        """Hidden states `(blocks, 256, channels)` of some training blocks."""
        if self._kept is None:
            return self._computed(blocks)
        rows = blocks.numpy()
        missing = rows[~self._known[rows]]
        if len(missing):
            self._kept[missing] = self._computed(torch.from_numpy(missing)).half().numpy()
            self._known[missing] = True
        return torch.from_numpy(self._kept[rows]).float()

    def _computed(self, blocks: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        ids = self.text.train[blocks].to(self.model.device)
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    mode: Any = "r+" if path.is_file() else "w+"
    return np.lib.format.open_memmap(path, mode, dtype, shape)


def train(student: PreTrainedModel, training: Training, teacher: Teacher) -> None:
    """Train a student in place."""
    parameters = list(student.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.rate, betas=(0.9, 0.95), fused=True)
    schedule = LambdaLR(optimizer, training.share)
    generator = torch.Generator().manual_seed(training.seed)
    student.train()
    for blocks in teacher.text.batches(training.seed, training.steps, BATCH):
        _loss(student, blocks, training, teacher, generator).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    student.eval()


def _loss(
    student: PreTrainedModel, blocks: torch.Tensor, training: Training, teacher: Teacher, generator: torch.Generator
) -> torch.Tensor:
    ids = teacher.text.train[blocks].to(student.device)
    layer: Any = student.get_output_embeddings()
    hidden_states = student.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets: Targets | None = None
    if training.distillation is not None:
        whole = DenseTargets(teacher.states(blocks)[:, :-1].flatten(0, 1).to(student.device), teacher.head)
        targets = training.distillation.seen(whole, generator)
    labels = ids[:, 1:].flatten()
    loss = fused_distillation_loss(hidden_states, Head(layer.weight, layer.bias), targets, labels, training.weights)
    return loss.total / len(labels)


def flops(student: PreTrainedModel, training: Training, teacher: Teacher) -> dict[str, int]:
    """FLOPs of a training: the student's passes, and the teacher's forward pass."""
    of_teacher = forward_flops_per_token(teacher.model, LENGTH) if training.distillation is not None else 0
    of_student = 3 * forward_flops_per_token(student, LENGTH)
    return {"training": training.tokens * of_student, "teacher": training.tokens * of_teacher}


def judge(student: PreTrainedModel, text: Text) -> dict[str, Any]:
    """Nats per token on the text to pick learning rates on, and by module on the test text."""
    by_module: dict[str, list[float]] = {}
    for module, loss in zip(text.modules, losses(student, text.test), strict=True):
        by_module.setdefault(module, []).append(loss)
    return {
        "search": round(float(np.mean(losses(student, text.rates))), 5),
        "test": {module: [round(float(np.mean(of)), 5), len(of)] for module, of in by_module.items()},
    }


def losses(model: PreTrainedModel, blocks: torch.Tensor) -> list[float]:
    """Nats per token of each block."""

    def loss(block: int, first: int, logits: torch.Tensor) -> torch.Tensor:
        labels = blocks[block, first + 1 : first + 1 + len(logits)].to(logits.device)
        return F.cross_entropy(logits[: len(labels)], labels, reduction="sum")

    sums: list[float] = (sums_of_blocks(model, blocks, 16, loss) / (blocks.shape[1] - 1)).tolist()
    return sums
