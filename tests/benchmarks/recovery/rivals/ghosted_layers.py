"""Ghosted Layers: the least-squares map of hidden states over removed layers, in their place (arXiv 2605.15491).

`W = I + M` with `M = (X^T X + eps I)^-1 X^T (Y - X)`, where `X` and `Y` are the teacher's hidden states before and
after the gap on calibration text, in double precision, and `eps` is 1e-6 as in the authors' code. The map follows the
layer before the gap and adds a square matrix of the channels.
"""

from typing import Any

import torch

from .cut import Cut
from .gap import boundary, gaps, insert

EPSILON = 1e-6


def replace(cut: Cut, student: Any) -> None:
    """Insert the map of every gap into a student."""
    for gap in gaps(cut):
        insert(cut, student, gap, operator(cut, gap))


def operator(cut: Cut, gap: tuple[int, int]) -> torch.Tensor:
    """The map of a gap, which multiplies hidden states from the right, `(channels, channels)`."""
    size = cut.teacher.config.hidden_size
    gram, product = torch.zeros(2, size, size, dtype=torch.float64)
    for before, after, _ in boundary(cut, gap):
        inputs, outputs = (states.double() for states in cut.tokens(before, after))
        gram += inputs.T @ inputs
        product += inputs.T @ (outputs - inputs)
    identity = torch.eye(size, dtype=torch.float64)
    return (identity + torch.linalg.solve(gram + EPSILON * identity, product)).float()
