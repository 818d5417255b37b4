"""The chunked distillation loss against the naive one: time and peak memory, forward and backward.

2,048 tokens, 50,304 entries of vocabulary, single precision, from logits: memory is what is held above the logits.
"""

from typing import Any

import torch

from hf_whittle.distillation.losses import LossWeights, distillation_loss, naive_distillation_loss

from .measuring import peak_memory, time_in_turn

ROWS, ENTRIES = 2048, 50304


def measure() -> dict[str, Any]:
    inputs = prepare()
    losses = {"naive": naive, **{f"chunks of {size}": Chunked(size) for size in (128, 512, 1024)}}
    values = {name: loss(inputs) for name, loss in losses.items()}
    seconds = time_in_turn({name: lambda loss=loss: loss(inputs) for name, loss in losses.items()}, repeats=3)
    memory = {name: peak_memory(prepare, loss) for name, loss in losses.items()}
    return {
        name: {
            "seconds": seconds[name],
            "ratio_to_naive": seconds[name] / seconds["naive"],
            "peak_megabytes": memory[name],
            "peak_ratio_to_naive": memory[name] / memory["naive"],
            "relative_difference": abs(values[name] / values["naive"] - 1),
        }
        for name in losses
    }


def prepare() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(ROWS, ENTRIES, generator=generator).requires_grad_()
    return student, torch.randn(ROWS, ENTRIES, generator=generator), torch.randint(0, ENTRIES, (ROWS,))


def naive(inputs: tuple[torch.Tensor, ...]) -> float:
    student, teacher, labels = inputs
    student.grad = None
    loss = naive_distillation_loss(student, teacher, labels, LossWeights())[0]
    loss.backward()
    return loss.item()


class Chunked:
    def __init__(self, size: int):
        self.size = size

    def __call__(self, inputs: tuple[torch.Tensor, ...]) -> float:
        student, teacher, labels = inputs
        student.grad = None
        loss = distillation_loss(student, teacher, labels, LossWeights(), self.size).total
        loss.backward()
        return loss.item()
