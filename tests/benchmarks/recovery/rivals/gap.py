"""Gaps that removed layers leave: hidden states on both sides, and a matrix in their place."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..passes import Seen, batches, final_norm, layers_of
from .cut import Cut


def gaps(cut: Cut) -> list[tuple[int, int]]:
    """Runs of removed layers: the first of each, and the layer after it."""
    kept = [*cut.subnet.layers, cut.teacher.config.num_hidden_layers]
    return [(before + 1, after) for before, after in zip([-1, *kept], kept, strict=False) if after > before + 1]


def boundary(
    cut: Cut, gap: tuple[int, int], modules: dict[str, nn.Module] | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, Seen]]]:
    """The teacher's hidden states before and after a gap, `(blocks, tokens, channels)`, a batch at a time.

    With what further modules of the teacher read and wrote.
    """
    readers = [*layers_of(cut.teacher), final_norm(cut.teacher)]
    sides = {"before": readers[gap[0]], "after": readers[gap[1]]}
    for seen in batches(cut.teacher, cut.calibration, {**sides, **(modules or {})}):
        yield seen["before"].inputs, seen["after"].inputs, seen


def layer_before(cut: Cut, gap: tuple[int, int]) -> int:
    """Position in the student of the layer before a gap.

    Raises:
        ValueError: if there is none.
    """
    position = sum(layer < gap[0] for layer in cut.subnet.layers) - 1
    if position < 0:
        raise ValueError(f"layers {gap[0]} to {gap[1] - 1} are removed and no layer stands before them; keep layer 0")
    return position


def insert(cut: Cut, student: Any, gap: tuple[int, int], matrix: torch.Tensor) -> None:
    """Multiply hidden states by a matrix from the right after the layer before a gap."""
    layer = layers_of(student)[layer_before(cut, gap)]
    layer.patch = nn.Linear(len(matrix), len(matrix), bias=False)
    layer.patch.weight.copy_(matrix.T)
    layer.register_forward_hook(_patch)


def _patch(layer: Any, args: Any, output: Any) -> Any:
    return (layer.patch(output[0]), *output[1:]) if isinstance(output, tuple) else layer.patch(output)
