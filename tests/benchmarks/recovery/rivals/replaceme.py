"""ReplaceMe: a linear map in place of removed layers, merged into the MLP before them (arXiv 2505.02819).

With `M` what the MLP before the gap writes, `R` the hidden states that this is added to and `Y` those after the gap,
`T = argmin |M T + R - Y|^2 = (M^T M)^-1 M^T (Y - R)`, and `W_down <- T^T W_down`. This is the paper's least squares,
without its optional ridge. Its variant that minimizes the cosine distance by gradient steps is not here. No parameters
are added.
"""

from typing import Any

import torch

from ..passes import module_of, writers
from .cut import Cut
from .gap import boundary, gaps, layer_before


def replace(cut: Cut, student: Any) -> None:
    """Merge the map of every gap into a student."""
    writer = writers(cut.teacher.config)[-1]
    for gap in gaps(cut):
        linear = module_of(student, writer, layer_before(cut, gap))
        transform = estimate(cut, gap).T
        linear.weight.copy_(transform @ linear.weight.double())
        if linear.bias is not None:
            linear.bias.copy_(transform @ linear.bias.double())


def estimate(cut: Cut, gap: tuple[int, int]) -> torch.Tensor:
    """The map `T` of a gap, `(channels, channels)`, in double precision."""
    size = cut.teacher.config.hidden_size
    gram, product = torch.zeros(2, size, size, dtype=torch.float64)
    before_gap = cut.subnet.layers[layer_before(cut, gap)]
    mlp = {"mlp": module_of(cut.teacher, writers(cut.teacher.config)[-1], before_gap)}
    for before, after, seen in boundary(cut, gap, mlp):
        written = seen["mlp"].outputs
        features, target = (states.double() for states in cut.tokens(written, after - (before - written)))
        gram += features.T @ features
        product += features.T @ target
    return torch.linalg.lstsq(gram, product).solution
