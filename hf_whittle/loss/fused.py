"""The distillation loss in chunks of rows, from states and output matrices, with gradients made in the forward pass.

No tensor of all rows and the whole vocabulary is held, neither of the student nor of the teacher. Shapes: `N` rows
(tokens), `V` entries of the vocabulary, `C` channels.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .divergences import IGNORED, DistillationLoss, LossWeights, naive_distillation_loss
from .targets import DenseTargets, Head, SparseTargets, Targets

_TILE_ENTRIES = 2**18  # treated at a time by each thread of a CPU, to stay in its cache between operations


def fused_distillation_loss(
    states: torch.Tensor,
    head: Head | None,
    targets: Targets,
    labels: torch.Tensor,
    weights: LossWeights | None = None,
    chunk_size: int = 256,
) -> DistillationLoss:
    """Cross-entropy with the labels plus the divergence from the teacher.

    Multiplications run in the type of autocast where that is on, else in that of the output matrix; everything else in
    single precision (double, if the states are).

    Args:
        states (`torch.Tensor`): `(N, C)`, the student's last hidden states; its logits `(N, V)` without a head.
        head (`Head`, *optional*): the student's output matrix; gets a gradient if it asks for one.
        targets (`Targets`): what the teacher says about the same rows.
        labels (`torch.Tensor`): `(N,)`, the token each row is to predict; rows with `IGNORED` do not count.
        weights (`LossWeights`, *optional*): of the two parts.
        chunk_size (`int`, *optional*, defaults to 256): rows whose logits are held at a time.

    Raises:
        ValueError: if the shapes do not fit, or the divergence needs more of the teacher than the targets tell.
    """
    weights = weights or LossWeights()
    if states.ndim != 2 or len(states) != len(targets) or labels.shape != states.shape[:1]:
        raise ValueError(
            f"expected states (N, C), targets and labels of N rows, got {tuple(states.shape)}, {len(targets)} rows and "
            f"labels {tuple(labels.shape)}"
        )
    if head is not None and head.weight.shape[1] != states.shape[1]:
        raise ValueError(f"states have {states.shape[1]} channels, the output matrix reads {head.weight.shape[1]}")
    if isinstance(targets, SparseTargets) and weights.divergence != "forward_kl":
        raise ValueError(
            f"{weights.divergence} needs the teacher's whole distribution; some of its entries allow forward_kl alone"
        )
    matrix, bias = (None, None) if head is None else (head.weight, head.bias)
    total, cross_entropy, divergence = _Fused.apply(states, matrix, bias, targets, labels, weights, chunk_size)
    return DistillationLoss(total, cross_entropy, divergence, (labels != IGNORED).sum())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        targets: Targets,
        labels: torch.Tensor,
        weights: LossWeights,
        chunk_size: int,
    ) -> tuple[torch.Tensor, ...]:
        device, exact = states.device, torch.promote_types(states.dtype, torch.float32)
        dtype = states.dtype if weight is None else weight.dtype
        if torch.is_autocast_enabled(device.type):
            autocast = torch.get_autocast_dtype(device.type)
            dtype = dtype if weight is None else autocast
            targets = targets.cast(autocast) if isinstance(targets, DenseTargets) else targets
        sums = torch.zeros(3, dtype=exact, device=device)
        of_states = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = (
            torch.zeros_like(tensor, dtype=exact) if tensor is not None and needed else None
            for tensor, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        counted = (labels != IGNORED).nonzero()[:, 0]
        with torch.autocast(device.type, enabled=False):
            matrix = None if weight is None else weight.to(dtype)
            for rows in counted.split(chunk_size):
                chunk = states[rows]  # a copy
                if matrix is None:
                    logits = chunk.to(exact)
                else:
                    chunk = chunk.to(dtype)
                    logits = (chunk @ matrix.T).to(exact)
                    if bias is not None:
                        logits += bias
                sums += _loss(logits, targets, rows, labels[rows], weights)
                slopes = logits.to(dtype)  # what were logits has become the gradient with respect to them
                if of_states is not None:
                    of_states[rows] = (slopes if matrix is None else slopes @ matrix).to(of_states.dtype)
                if of_weight is not None:
                    if dtype == exact:
                        of_weight.addmm_(slopes.T, chunk)
                    else:
                        of_weight += slopes.T @ chunk
                if of_bias is not None:
                    of_bias += logits.sum(0)
        ctx.save_for_backward(
            of_states,
            of_weight if of_weight is None or weight is None else of_weight.to(weight.dtype),
            of_bias if of_bias is None or bias is None else of_bias.to(bias.dtype),
        )
        total, cross_entropy, divergence = sums.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (None if saved is None else saved * grad_total.to(saved.dtype) for saved in ctx.saved_tensors)
        return *gradients, None, None, None, None


def _loss(
    logits: torch.Tensor,
    targets: Targets,
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: LossWeights,
) -> torch.Tensor:
    """Sums of total, cross-entropy and divergence of a chunk, whose logits become the gradient of the total."""
    if isinstance(targets, SparseTargets):
        function: Any = _of_entries
        teacher: Any = targets[rows]
    else:
        function = _forward_kl if weights.divergence == "forward_kl" else _any
        teacher = targets.logits(rows, logits.shape[-1], weights.temperature).to(logits)
    tile = len(rows)
    if logits.device.type == "cpu":
        tile = max(1, torch.get_num_threads() * _TILE_ENTRIES // logits.shape[1])
    sums = logits.new_zeros(3)
    for start in range(0, len(rows), tile):
        at = slice(start, start + tile)
        cross_entropy, divergence = function(logits[at], labels[at, None], teacher[at], weights)
        total = weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence
        sums += torch.stack([total, cross_entropy, divergence])
    return sums


def _forward_kl(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and forward KL; `teacher`, divided by the temperature, is overwritten too."""
    logits.sub_(logits.amax(-1, keepdim=True))
    teacher.sub_(teacher.amax(-1, keepdim=True))
    soft = logits / weights.temperature
    p = teacher.exp()
    p_sum = p.sum(-1, keepdim=True)
    divergence = torch.linalg.vecdot(p, teacher.sub_(soft))[:, None] / p_sum - p_sum.log()
    q = soft.exp_()
    q_sum = q.sum(-1, keepdim=True)
    divergence += q_sum.log()
    cross_entropy = _cross_entropy(logits, labels, weights.alpha)
    slope = weights.beta * weights.temperature  # the temperature's square, over it for the inner derivative
    logits.addcmul_(q, slope / q_sum).addcmul_(p, -slope / p_sum)
    return cross_entropy, divergence.sum()


def _of_entries(
    logits: torch.Tensor, labels: torch.Tensor, teacher: SparseTargets, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and forward KL from some entries of the teacher's distribution."""
    logits.sub_(logits.amax(-1, keepdim=True))
    q = logits / weights.temperature
    of_ids = q.gather(1, teacher.ids)
    q.exp_()
    q_sum = q.sum(-1, keepdim=True)
    p = teacher.probabilities.to(logits.dtype)
    divergence = (p * (q_sum.log() - of_ids)).sum(-1, keepdim=True)
    if teacher.entropy is None:
        divergence += torch.special.xlogy(p, p).sum(-1, keepdim=True)
    else:
        divergence -= teacher.entropy[:, None]
    scale = p.sum(-1, keepdim=True)
    if teacher.tail:
        rest_p = (1 - scale).clamp(min=0)
        q_of_ids = q.gather(1, teacher.ids) / q_sum
        rest_q = q.scatter_(1, teacher.ids, 0).sum(-1, keepdim=True) / q_sum
        log_rest_q = rest_q.clamp(min=torch.finfo(q.dtype).tiny).log()
        divergence += torch.special.xlogy(rest_p, rest_p) - rest_p * log_rest_q
        # An entry of the rest gets q - q * rest_p / rest_q, one that is given gets q - p.
        scale = 1 - torch.where(rest_q > 0, rest_p / rest_q, 0)
        p = p - q_of_ids
    cross_entropy = _cross_entropy(logits, labels, weights.alpha)
    slope = weights.beta * weights.temperature
    logits.addcmul_(q, slope * scale / q_sum).scatter_add_(1, teacher.ids, -slope * p)
    return cross_entropy, divergence.sum()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum of cross-entropies; the logits, whose maximum is 0, become its gradient times `alpha`."""
    of_labels = logits.gather(1, labels)
    logits.exp_()
    total = logits.sum(-1, keepdim=True)
    logits.mul_(alpha / total).scatter_add_(1, labels, torch.full_like(of_labels, -alpha))
    return (total.log() - of_labels).sum()


def _any(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and any divergence, with the gradient that autograd finds."""
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        loss = naive_distillation_loss(leaf, teacher * weights.temperature, labels[:, 0], weights)
        (gradient,) = torch.autograd.grad(loss.total, leaf)
    logits.copy_(gradient)
    return loss.cross_entropy, loss.divergence
