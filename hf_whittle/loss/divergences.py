"""Divergences between token distributions, each defined once, and the plain form of the distillation loss.

Shapes: `N` rows (tokens), `V` entries of the vocabulary. Logarithms are natural.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

IGNORED = -100
"""Label of a row left out of cross-entropy and divergence."""


def labels_of_rows(labels: torch.Tensor) -> torch.Tensor:
    """Label of each row, `(N,)`: the token after it; `IGNORED` for the last of a block.

    Args:
        labels (`torch.Tensor`): `(batch, length)`, the label of each token.
    """
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:].flatten()


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) from log-probabilities `(N, V)`; `(N,)` in nats, 0 to infinity."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) from log-probabilities; 0 to infinity."""
    return forward_kl(teacher, student)


def symmetric_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of forward and reverse KL: half of Jeffreys' divergence; 0 to infinity."""
    return ((teacher.exp() - student.exp()) * (teacher - student)).sum(-1) / 2


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    """Generalized Jensen-Shannon divergence: `weight * KL(teacher || m) + (1 - weight) * KL(student || m)`.

    `m` is the mixture `weight * teacher + (1 - weight) * student` (arXiv 2306.13649). 0 to the entropy of the two
    weights, which is ln 2 at 0.5.
    """
    mixture = torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))
    return weight * forward_kl(mixture, teacher) + (1 - weight) * forward_kl(mixture, student)


def total_variation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Half the L1 distance of the probabilities; 0 to 1."""
    return l1(student, teacher) / 2


def l1(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum of the absolute differences of the probabilities; 0 to 2."""
    return (student.exp() - teacher.exp()).abs().sum(-1)


def l2(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum of the squared differences of the probabilities; 0 to 2."""
    return (student.exp() - teacher.exp()).square().sum(-1)


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 minus the cosine of the two vectors of probabilities; 0 to 1."""
    return 1 - F.cosine_similarity(student.exp(), teacher.exp(), dim=-1)


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross-entropy under the teacher: forward KL plus the teacher's entropy, with the same gradient."""
    return -(teacher.exp() * student).sum(-1)


Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "cosine": cosine,
    "l1": l1,
    "l2": l2,
    "soft_cross_entropy": soft_cross_entropy,
}


@dataclass(frozen=True)
class LossWeights:
    """Weights of `alpha * CE + beta * temperature**2 * D`, where `D` compares distributions at the temperature.

    The factor `temperature**2` keeps the gradient of a KL divergence at its scale without a temperature (Hinton et al.,
    arXiv 1503.02531). Defaults as in arXiv 2510.07227.

    Args:
        alpha (`float`): weight of cross-entropy with the labels.
        beta (`float`): weight of the divergence from the teacher.
        temperature (`float`): divisor of all logits in the divergence.
        divergence (`str`): a name in `DIVERGENCES`.
        jsd_weight (`float`): the teacher's weight in `jensen_shannon`, between 0 and 1.
    """

    alpha: float = 0.2
    beta: float = 0.8
    temperature: float = 0.9
    divergence: str = "forward_kl"
    jsd_weight: float = 0.5

    @property
    def function(self) -> Divergence:
        """The divergence as a function of log-probabilities."""
        if self.divergence == "jensen_shannon":
            return partial(jensen_shannon, weight=self.jsd_weight)
        return DIVERGENCES[self.divergence]


@dataclass
class DistillationLoss:
    """The loss summed over the rows with a label, and its two parts, unweighted and detached.

    Args:
        total (`torch.Tensor`): weighted sum, scalar, carries the gradient.
        cross_entropy (`torch.Tensor`): sum of cross-entropies, scalar.
        divergence (`torch.Tensor`): sum of divergences at the temperature, scalar, without the factor `temperature**2`.
        rows (`torch.Tensor`): number of rows with a label, scalar.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    divergence: torch.Tensor
    rows: torch.Tensor


def naive_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, weights: LossWeights
) -> DistillationLoss:
    """The loss by its formula, on the logits of all rows at once.

    The fused loss takes the gradient of most divergences from it, a chunk of rows at a time.

    Args:
        student_logits (`torch.Tensor`): `(N, V)`.
        teacher_logits (`torch.Tensor`): `(N, V)`.
        labels (`torch.Tensor`): `(N,)`, the token each row predicts; rows with `IGNORED` are left out.
        weights (`LossWeights`): weights of the two parts.
    """
    kept = labels != IGNORED
    student, teacher = (at_least_float32(logits[kept]) for logits in (student_logits, teacher_logits))
    cross_entropy = F.cross_entropy(student, labels[kept], reduction="sum")
    soft = [F.log_softmax(logits / weights.temperature, dim=-1) for logits in (student, teacher)]
    divergence = weights.function(*soft).sum()
    total = weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence
    return DistillationLoss(total, cross_entropy.detach(), divergence.detach(), kept.sum())


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in single precision; one in double precision is returned unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
