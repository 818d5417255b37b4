"""The distillation loss in chunks of rows, from hidden states and output matrices; gradients made in the forward pass.

No tensor of all rows and the whole vocabulary is held, neither for the student nor for the teacher. Shapes: `N` rows
(tokens), `V` entries of the vocabulary, `C` channels.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..models.heads import Head
from .divergences import IGNORED, DistillationLoss, LossWeights, naive_distillation_loss
from .targets import DenseTargets, SparseTargets, Targets

_TILE_ENTRIES = 2**18  # per thread of a CPU and pass, to stay in its cache between operations


def fused_distillation_loss(
    hidden_states: torch.Tensor,
    head: Head | None,
    targets: Targets | None,
    labels: torch.Tensor,
    weights: LossWeights | None = None,
    chunk_size: int = 256,
) -> DistillationLoss:
    """Cross-entropy with the labels plus the divergence from the teacher, which is 0 without targets.

    Matrix products run in the type of autocast if that is on, else in the type of the output matrix; everything else
    runs in single precision, or in double if the hidden states are in double.

    Args:
        hidden_states (`torch.Tensor`): the student's last hidden states, `(N, C)`; its logits `(N, V)` if there is no
            head.
        head (`Head`, *optional*): the student's output matrix; gets a gradient if it requires one.
        targets (`Targets`, *optional*): the teacher's targets for the same rows.
        labels (`torch.Tensor`): `(N,)`, the token each row predicts; rows with `IGNORED` are left out.
        weights (`LossWeights`, *optional*): weights of the two parts.
        chunk_size (`int`, *optional*, defaults to 256): rows whose logits are held at a time.

    Raises:
        ValueError: if the shapes do not fit, or the divergence needs the whole distribution and the targets are sparse.
    """
    weights = weights or LossWeights()
    given = len(hidden_states) if targets is None else len(targets)
    if hidden_states.ndim != 2 or len(hidden_states) != given or labels.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"expected hidden states (N, C), targets and labels of N rows, got {tuple(hidden_states.shape)}, "
            f"{given} rows and labels {tuple(labels.shape)}"
        )
    if head is not None and head.weight.shape[1] != hidden_states.shape[1]:
        raise ValueError(
            f"hidden states have {hidden_states.shape[1]} channels, the output matrix reads {head.weight.shape[1]}; "
            "give both of one model"
        )
    if isinstance(targets, SparseTargets) and weights.divergence != "forward_kl":
        raise ValueError(
            f"{weights.divergence} needs the teacher's whole distribution; with some entries of it, use forward_kl"
        )
    matrix, bias = (None, None) if head is None else (head.weight, head.bias)
    parts: tuple[Any, ...] = (hidden_states, matrix, bias)
    if not torch.is_grad_enabled():  # where parameters still say that they need a gradient, which takes a product more
        parts = tuple(None if part is None else part.detach() for part in parts)
    total, cross_entropy, divergence = _Fused.apply(*parts, targets, labels, weights, chunk_size)
    return DistillationLoss(total, cross_entropy, divergence, (labels != IGNORED).sum())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        targets: Targets | None,
        labels: torch.Tensor,
        weights: LossWeights,
        chunk_size: int,
    ) -> tuple[torch.Tensor, ...]:
        device, exact = hidden_states.device, torch.promote_types(hidden_states.dtype, torch.float32)
        dtype = hidden_states.dtype if weight is None else weight.dtype
        if torch.is_autocast_enabled(device.type):
            autocast = torch.get_autocast_dtype(device.type)
            dtype = dtype if weight is None else autocast
            targets = targets.cast(autocast) if isinstance(targets, DenseTargets) else targets
        sums = torch.zeros(3, dtype=exact, device=device)
        grad_hidden = torch.zeros_like(hidden_states) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = (
            torch.zeros_like(tensor, dtype=exact) if tensor is not None and needed else None
            for tensor, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        counted = (labels != IGNORED).nonzero()[:, 0]
        with torch.autocast(device.type, enabled=False):
            matrix = None if weight is None else weight.to(dtype)
            for rows in counted.split(chunk_size):
                chunk = hidden_states[rows]  # a copy
                if matrix is None:
                    logits = chunk.to(exact)
                else:
                    chunk = chunk.to(dtype)
                    logits = (chunk @ matrix.T).to(exact)
                    if bias is not None:
                        logits += bias
                sums += _loss(logits, targets, rows, labels[rows], weights)
                grad_logits = logits.to(dtype)  # _loss replaced the logits by the gradient with respect to them
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad_logits if matrix is None else grad_logits @ matrix).to(grad_hidden.dtype)
                if grad_weight is not None:
                    if dtype == exact:
                        grad_weight.addmm_(grad_logits.T, chunk)
                    else:
                        grad_weight += grad_logits.T @ chunk
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            grad_weight if grad_weight is None or weight is None else grad_weight.to(weight.dtype),
            grad_bias if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
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
    targets: Targets | None,
    rows: torch.Tensor,
    labels: torch.Tensor,
    weights: LossWeights,
) -> torch.Tensor:
    """Sum total, cross-entropy and divergence of a chunk; the gradient of the total overwrites its logits."""
    function: Any
    teacher: Any = None
    if targets is None:
        function = _text_alone
    elif isinstance(targets, SparseTargets):
        function, teacher = _sparse_forward_kl, targets[rows]
    else:
        function = _forward_kl if weights.divergence == "forward_kl" else _by_autograd
        teacher = targets.logits(rows, logits.shape[-1], weights.temperature).to(logits)
    on_cpu = logits.device.type == "cpu"
    tile = max(1, torch.get_num_threads() * _TILE_ENTRIES // logits.shape[1] if on_cpu else len(rows))
    sums = logits.new_zeros(3)
    for start in range(0, len(rows), tile):
        at = slice(start, start + tile)
        cross_entropy, divergence = function(
            logits[at], labels[at, None], None if teacher is None else teacher[at], weights
        )
        total = weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence
        sums += torch.stack([total, cross_entropy, divergence])
    return sums


def _text_alone(
    logits: torch.Tensor, labels: torch.Tensor, teacher: None, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy alone."""
    logits.sub_(logits.amax(-1, keepdim=True))
    return _cross_entropy(logits, labels, weights.alpha), logits.new_zeros(())


def _forward_kl(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and forward KL; overwrites `teacher`, the logits divided by the temperature, as well."""
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
    slope = weights.beta * weights.temperature  # temperature**2, divided by it as the inner derivative
    logits.addcmul_(q, slope / q_sum).addcmul_(p, -slope / p_sum)
    return cross_entropy, divergence.sum()


def _sparse_forward_kl(
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
        # The gradient is q - q * rest_p / rest_q for an entry of the tail, q - p for a given one.
        scale = 1 - torch.where(rest_q > 0, rest_p / rest_q, 0)
        p = p - q_of_ids
    cross_entropy = _cross_entropy(logits, labels, weights.alpha)
    slope = weights.beta * weights.temperature
    logits.addcmul_(q, slope * scale / q_sum).scatter_add_(1, teacher.ids, -slope * p)
    return cross_entropy, divergence.sum()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, alpha: float) -> torch.Tensor:
    """Sum of cross-entropies; its gradient times `alpha` overwrites the logits, whose maximum must be 0."""
    of_labels = logits.gather(1, labels)
    logits.exp_()
    total = logits.sum(-1, keepdim=True)
    logits.mul_(alpha / total).scatter_add_(1, labels, torch.full_like(of_labels, -alpha))
    return (total.log() - of_labels).sum()


def _by_autograd(
    logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and any divergence, with the gradient from autograd."""
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        loss = naive_distillation_loss(leaf, teacher * weights.temperature, labels[:, 0], weights)
        (gradient,) = torch.autograd.grad(loss.total, leaf)
    logits.copy_(gradient)
    return loss.cross_entropy, loss.divergence
