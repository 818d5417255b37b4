"""Distillation losses: divergences of log-probabilities, and their sum with cross-entropy in chunks of rows.

Shapes: `N` rows (tokens), `V` entries of the vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100
"""Label of a row that counts neither in cross-entropy nor in divergence."""


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of log-probabilities `(N, V)`, in nats for each row, `(N,)`."""
    return (teacher.exp() * (teacher - student)).sum(-1)


@dataclass(frozen=True)
class LossWeights:
    """Weights of `alpha * CE + beta * temperature**2 * KL`, the distributions of KL softened by the temperature.

    The factor `temperature**2` keeps the gradient of the KL term at the scale it has without a temperature (Hinton et
    al., arXiv 1503.02531). Defaults: arXiv 2510.07227.
    """

    alpha: float = 0.2
    beta: float = 0.8
    temperature: float = 0.9


@dataclass
class DistillationLoss:
    """The loss summed over the rows that count, and its two parts, unweighted and detached.

    Args:
        total (`torch.Tensor`): weighted sum, scalar, carries the gradient to the student's logits.
        cross_entropy (`torch.Tensor`): sum of cross-entropies, scalar.
        divergence (`torch.Tensor`): sum of divergences at the temperature, scalar, without the factor of it.
        rows (`torch.Tensor`): number of rows that count, scalar.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    divergence: torch.Tensor
    rows: torch.Tensor


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    weights: LossWeights | None = None,
    chunk_size: int = 128,
) -> DistillationLoss:
    """Cross-entropy with the labels plus KL divergence from the teacher, in chunks of rows.

    Gradients are made in the forward pass, chunk by chunk, so that no softmax of all rows is ever held. The result is
    in single precision, whatever the logits are in.

    Args:
        student_logits (`torch.Tensor`): `(N, V)`.
        teacher_logits (`torch.Tensor`): `(N, V)`.
        labels (`torch.Tensor`): `(N,)`, the token each row is to predict; rows with `IGNORED` do not count.
        weights (`LossWeights`, *optional*): alpha, beta and temperature.
        chunk_size (`int`, *optional*, defaults to 128): rows at a time.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"expected student and teacher logits (N, V) and labels (N,), got {tuple(student_logits.shape)}, "
            f"{tuple(teacher_logits.shape)} and {tuple(labels.shape)}"
        )
    total, cross_entropy, divergence = _ChunkedLoss.apply(
        student_logits, teacher_logits.detach(), labels, weights or LossWeights(), chunk_size
    )
    return DistillationLoss(total, cross_entropy, divergence, (labels != IGNORED).sum())


def naive_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same sums over all rows at once: weighted total, cross-entropy, divergence."""
    kept = labels != IGNORED
    student, teacher = student_logits[kept].float(), teacher_logits[kept].float()
    cross_entropy = F.cross_entropy(student, labels[kept], reduction="sum")
    soft = [F.log_softmax(logits / weights.temperature, dim=-1) for logits in (student, teacher)]
    divergence = forward_kl(*soft).sum()
    total = weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence
    return total, cross_entropy, divergence


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,
        weights: LossWeights,
        chunk_size: int,
    ) -> tuple[torch.Tensor, ...]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(student_logits) if needs_gradient else None
        sums = torch.zeros(3, dtype=torch.float32, device=student_logits.device)
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            with torch.set_grad_enabled(needs_gradient):
                chunk = student_logits[rows].detach().requires_grad_(needs_gradient)
                parts = naive_distillation_loss(chunk, teacher_logits[rows], labels[rows], weights)
                if gradient is not None:
                    (gradient[rows],) = torch.autograd.grad(parts[0], chunk)
            sums += torch.stack([part.detach() for part in parts])
        ctx.save_for_backward(gradient)
        total, cross_entropy, divergence = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None, None, None
