"""The chunked distillation loss of liger-kernel, in the place of ours."""

from typing import Any

import torch

from .divergences import IGNORED, DistillationLoss, LossWeights
from .targets import DenseTargets, Head

_WEIGHT_OF_TEACHER = {"forward_kl": 0.0, "reverse_kl": 1.0}


def liger_function() -> Any:
    """The loss of liger-kernel.

    Raises:
        ImportError: if liger-kernel is not there.
    """
    try:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction
    except ImportError as error:
        raise ImportError(
            "loss_impl='liger' needs liger-kernel: pip install 'hf_whittle[liger]', or set 'fused'"
        ) from error
    return LigerFusedLinearJSDFunction


def liger_distillation_loss(
    states: torch.Tensor,
    head: Head | None,
    targets: DenseTargets,
    labels: torch.Tensor,
    weights: LossWeights,
    chunk_size: int = 1024,
) -> DistillationLoss:
    """As `fused_distillation_loss`, by `liger_kernel.chunked_loss`; compiled where there is a GPU.

    Raises:
        ImportError: if liger-kernel is not there.
        ValueError: for a divergence it does not have, and for logits instead of states.
    """
    function = liger_function()
    if weights.divergence not in (*_WEIGHT_OF_TEACHER, "jensen_shannon"):
        raise ValueError(f"liger-kernel has no {weights.divergence}; use loss_impl='fused'")
    if head is None or targets.head is None:
        raise ValueError("liger-kernel reads states and plain output matrices of both models; use loss_impl='fused'")
    if targets.head.size < head.size:
        raise ValueError("liger-kernel cannot pad a teacher's smaller vocabulary; use loss_impl='fused'")
    teacher = targets.head.first(head.size)
    rows = (labels != IGNORED).nonzero()[:, 0]
    number = max(len(rows), 1)
    mean, soft, hard = function.apply(
        states[rows].to(head.weight.dtype),
        head.weight,
        targets.states[rows.to(targets.states.device)].to(head.weight),
        teacher.weight.to(head.weight),
        labels[rows],
        head.bias,
        teacher.bias,
        weights.alpha,
        weights.beta * weights.temperature**2,
        _WEIGHT_OF_TEACHER.get(weights.divergence, weights.jsd_weight),
        IGNORED,
        weights.temperature,
        states.is_cuda,
        chunk_size,
        True,
    )
    return DistillationLoss(mean * number, hard.detach() * number, soft.detach() * number, (labels != IGNORED).sum())
