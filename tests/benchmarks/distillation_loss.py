"""The fused distillation loss against the naive form, whittle's and Liger's: time and peak memory of both passes.

50,304 entries of vocabulary, hidden states of 512 channels for the student and 768 for the teacher, single precision,
one thread. Memory is counted beyond hidden states and output matrices. Rows of Liger need the extra `bench`.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from hf_whittle.loss.divergences import DistillationLoss, LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, Head

from ..fixtures_losses import liger_loss
from .measuring import peak_memory, time_in_turn

ENTRIES, STUDENT, TEACHER = 50304, 512, 768
ROWS = {2048: 3, 8192: 1}  # tokens, and the number of timings of each loss
Inputs = tuple[torch.Tensor, ...]


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    losses: dict[str, Callable[..., Any]] = {
        "naive": naive,
        "whittle's formula": whittle,
        **{f"fused, chunks of {size}": partial(fused, size) for size in (64, 128, 256)},
    }
    if importlib.util.find_spec("liger_kernel"):
        losses |= {f"liger 0.8.5, chunks of {size}": partial(liger, size) for size in (256, 1024)}
    few = {
        name: losses[name]
        for name in ("naive", "fused, chunks of 128", "liger 0.8.5, chunks of 1024")
        if name in losses
    }
    return {f"{rows} tokens": _compare(losses if repeats > 1 else few, rows, repeats) for rows, repeats in ROWS.items()}


def _compare(losses: dict[str, Callable[..., Any]], rows: int, repeats: int) -> dict[str, Any]:
    memory = {name: peak_memory(partial(prepare, rows), loss) for name, loss in losses.items()}
    inputs = prepare(rows)
    values = {name: loss(inputs) for name, loss in losses.items()}
    seconds = time_in_turn({name: partial(loss, inputs) for name, loss in losses.items()}, repeats)
    return {
        name: {
            "seconds": round(seconds[name], 2),
            "ratio_to_naive": round(seconds[name] / seconds["naive"], 3),
            "peak_megabytes": round(memory[name]),
            "peak_ratio_to_naive": round(memory[name] / memory["naive"], 3),
            "relative_difference_of_the_loss": abs(values[name] / values["naive"] - 1),
        }
        for name in losses
    }


def prepare(rows: int) -> Inputs:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    sizes = [(rows, STUDENT), (ENTRIES, STUDENT), (rows, TEACHER), (ENTRIES, TEACHER)]
    states, weight, of_teacher, teacher_weight = (torch.randn(*size, generator=generator) for size in sizes)
    labels = torch.randint(ENTRIES, (rows,), generator=generator)
    return states.requires_grad_(), weight.mul_(0.05).requires_grad_(), of_teacher, teacher_weight.mul_(0.05), labels


def _backward(loss: DistillationLoss, inputs: Inputs) -> float:
    for tensor in inputs[:2]:
        tensor.grad = None
    loss.total.backward()
    return loss.total.item()


def naive(inputs: Inputs) -> float:
    states, weight, of_teacher, teacher_weight, labels = inputs
    with torch.no_grad():
        teacher = of_teacher @ teacher_weight.T
    return _backward(naive_distillation_loss(states @ weight.T, teacher, labels, LossWeights()), inputs)


def whittle(inputs: Inputs) -> float:
    """`DistillLoss` of whittle 0.6, with the factor `temperature**2`, and sums instead of means."""
    states, weight, of_teacher, teacher_weight, labels = inputs
    with torch.no_grad():
        teacher = of_teacher @ teacher_weight.T
    student = states @ weight.T
    hard = F.cross_entropy(student, labels, reduction="sum")
    soft = F.kl_div(F.log_softmax(student / 0.9, -1), F.softmax(teacher / 0.9, -1), reduction="sum")
    return _backward(DistillationLoss(0.2 * hard + 0.8 * 0.9**2 * soft, hard, soft, torch.tensor(len(labels))), inputs)


def fused(chunk_size: int, inputs: Inputs) -> float:
    states, weight, of_teacher, teacher_weight, labels = inputs
    targets = DenseTargets(of_teacher, Head(teacher_weight))
    return _backward(fused_distillation_loss(states, Head(weight), targets, labels, None, chunk_size), inputs)


def liger(chunk_size: int, inputs: Inputs) -> float:
    states, weight, of_teacher, teacher_weight, labels = inputs
    targets = DenseTargets(of_teacher, Head(teacher_weight))
    return _backward(liger_loss(states, Head(weight), targets, labels, LossWeights(), chunk_size), inputs)
