"""The fused distillation loss against the naive one and Liger's: seconds and peak memory, forward and backward."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .comparing import DEVICE
from .inner import DenseTargets, Head, LossWeights, fused_distillation_loss, naive_distillation_loss
from .measuring import Rows, compare
from .sizes import SIZES

CHUNKS = (1_024, 4_096)  # the trainer's on a GPU, and larger ones
Inputs = tuple[torch.Tensor, ...]


def cases() -> dict[str, Callable[[], Rows]]:
    return {f"{tokens} tokens": partial(_compare, tokens) for tokens in SIZES.loss_tokens}


def _compare(tokens: int) -> Rows:
    torch.compiler.reset()  # Liger's loss, compiled for one size, fails at the next
    inputs = _draw(tokens)
    losses: dict[str, Callable[[Inputs], torch.Tensor]] = {"naive": naive}
    losses |= {f"fused, chunks of {size}": partial(fused, size) for size in CHUNKS}
    if importlib.util.find_spec("liger_kernel"):
        losses |= {"liger, chunks of 1024": partial(liger, 1_024)}  # compiled, which takes its time for each size
    rows = compare({name: partial(_backward, loss, inputs) for name, loss in losses.items()}, SIZES.repeats)
    reference = losses["naive"](inputs).item()
    for name, row in rows.items():
        if "error" not in row:
            row["relative_difference_of_the_loss"] = abs(losses[name](inputs).item() / reference - 1)
    return rows


def _draw(tokens: int) -> Inputs:
    """Hidden states and matrix of a student and of a teacher, and labels, in bfloat16."""
    torch.manual_seed(0)
    channels, entries = SIZES.loss_channels, SIZES.entries
    shapes = [(tokens, channels), (entries, channels), (tokens, channels), (entries, channels)]
    states, matrix, of_teacher, teacher = (torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes)
    labels = torch.randint(entries, (tokens,), device=DEVICE)
    return states.requires_grad_(), matrix.mul_(0.05).requires_grad_(), of_teacher, teacher.mul_(0.05), labels


def _backward(loss: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> None:
    for tensor in inputs[:2]:
        tensor.grad = None
    loss(inputs).backward()


def naive(inputs: Inputs) -> torch.Tensor:
    states, matrix, of_teacher, teacher, labels = inputs
    with torch.no_grad():
        targets = of_teacher @ teacher.T
    return naive_distillation_loss(states @ matrix.T, targets, labels, LossWeights()).total / len(labels)


def fused(chunk_size: int, inputs: Inputs) -> torch.Tensor:
    states, matrix, of_teacher, teacher, labels = inputs
    targets = DenseTargets(of_teacher, Head(teacher))
    return fused_distillation_loss(states, Head(matrix), targets, labels, None, chunk_size).total / len(labels)


def liger(chunk_size: int, inputs: Inputs) -> torch.Tensor:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    states, matrix, of_teacher, teacher, labels = inputs
    weights = LossWeights()
    settings: dict[str, Any] = {
        "bias": None,
        "teacher_bias": None,
        "weight_hard_loss": weights.alpha,
        "weight_soft_loss": weights.beta * weights.temperature**2,
        "beta": 0.0,  # forward KL
        "ignore_index": -100,
        "temperature": weights.temperature,
        "compiled": DEVICE.type == "cuda",
        "chunk_size": chunk_size,
        "return_soft_hard_loss": False,
    }
    return LigerFusedLinearJSDFunction.apply(states, matrix, of_teacher, teacher, labels, *settings.values())
