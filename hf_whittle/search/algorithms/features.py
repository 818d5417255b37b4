"""Features of a subnet for a surrogate: counts, runs, gaps and widths, in the manner of GRAF (arXiv 2403.13613)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...architectures.dimensions import Dimension
from ...cost.polynomial import Polynomial
from ...subnet import Kept, Shape, SubnetConfig, count, indices


def features(
    subnet: SubnetConfig,
    full: Shape,
    cost: Polynomial,
    depth: int | None = None,
    optional: Sequence[Dimension] = (),
) -> np.ndarray:
    """Describe a subnet by numbers that compare between super-networks of different sizes.

    All are shares of the super-network, or statistics of shares: kept channels, layers and cost, entries of each
    dimension that layers have of their own, such as heads and neurons; first, last and mean kept layer, longest run and
    gap of layers; for each of these dimensions its mean, spread, minimum, maximum and slope over the kept layers, the
    location of kept entries, and the width of every layer (0 where it is left out).

    Args:
        subnet (`SubnetConfig`): the subnet.
        full (`Shape`): sizes of the super-network.
        cost (`Polynomial`): cost that the bin bounds.
        depth (`int`, *optional*): number of layers to describe the widths of, read at the same relative positions
            where the super-network has another depth; by default its own.
        optional (`Sequence[Dimension]`, *optional*): dimensions that subnets need not name whose share and location
            are described as well.

    Returns:
        `np.ndarray`: `(features,)`, `float64`; the number of features depends on `depth` and `optional` only.
    """
    shape, layers, total = subnet.shape.filled(full), subnet.layers, full.num_hidden_layers
    per_layer = full.per_layer
    values = [
        shape.hidden_size / full.hidden_size,
        shape.num_hidden_layers / total,
        cost(shape) / cost(full),
        *(sum(getattr(shape, d.name)) / sum(getattr(full, d.name)) for d in per_layer),
        *_layout(layers, total),
        *_location(subnet.hidden_size, full.hidden_size),
    ]
    read_at = [position * total // (depth or total) for position in range(depth or total)]
    for dimension in per_layer:
        available = [full.size(dimension, layer) for layer in layers]
        widths = [size / most for size, most in zip(getattr(shape, dimension.name), available, strict=True)]
        values += [*_statistics(widths), *_mean_location(subnet.kept(dimension), available)]
        by_layer = dict(zip(layers, widths, strict=True))
        values += [by_layer.get(layer, 0.0) for layer in read_at]
    for dimension in optional:
        size, kept = full.size(dimension), subnet.kept(dimension)
        values += [shape.size(dimension) / size, *_location(size if kept is None else kept, size)]
    return np.array(values, dtype=np.float64)


def _layout(layers: Sequence[int], total: int) -> list[float]:
    """First, last (from the end) and mean kept layer, longest run, longest gap and number of gaps, as shares."""
    gaps = [after - before - 1 for before, after in pairwise((-1, *layers, total))]
    run = longest = 1
    for gap in gaps[1:-1]:
        run = 1 if gap else run + 1
        longest = max(longest, run)
    middle = sum(layers) / len(layers)
    numbers = [layers[0], total - 1 - layers[-1], middle, longest, max(gaps), sum(gap > 0 for gap in gaps)]
    return [number / total for number in numbers]


def _statistics(widths: Sequence[float]) -> list[float]:
    """Mean, standard deviation, minimum, maximum, slope over the layers, and means of the first and second half."""
    mean = sum(widths) / len(widths)
    deviation = (sum((width - mean) ** 2 for width in widths) / len(widths)) ** 0.5
    middle = (len(widths) - 1) / 2
    scatter = sum((position - middle) ** 2 for position in range(len(widths)))
    slope = sum((position - middle) * width for position, width in enumerate(widths)) / (scatter or 1)
    half = (len(widths) + 1) // 2
    halves = [sum(part) / len(part) for part in (widths[:half], widths[-half:])]
    return [mean, deviation, min(widths), max(widths), slope * len(widths), *halves]


def _location(kept: Kept, total: int) -> list[float]:
    """Mean index of `k` kept entries, as a share, and the share of them among the first `k`."""
    size = count(kept)
    if isinstance(kept, int):
        return [(size - 1) / 2 / total, 1.0]
    chosen = indices(kept)
    return [sum(chosen) / size / total, sum(index < size for index in chosen) / size]


def _mean_location(kept: Sequence[Kept], totals: Sequence[int]) -> list[float]:
    located = [_location(entry, total) for entry, total in zip(kept, totals, strict=True)]
    return [sum(column) / len(located) for column in zip(*located, strict=True)]
