"""Features of a subnet for a surrogate, in the manner of GRAF: counts, runs and gaps, widths and their trends."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..cost import Polynomial
from ..subnet import Kept, Shape, SubnetConfig, count, indices


def features(subnet: SubnetConfig, full: Shape, cost: Polynomial) -> np.ndarray:
    """A vector that describes what a subnet of a super-network keeps; its length depends on the super-network only.

    All of them are shares or statistics of shares, so that those of super-networks of equal depth compare.

    Args:
        subnet (`SubnetConfig`): the subnet.
        full (`Shape`): sizes of the super-network.
        cost (`Polynomial`): what the bin bounds.

    Returns:
        `np.ndarray`: `(features,)`, `float64`.
    """
    shape, layers = subnet.shape, subnet.layers
    widths = [
        _spread(layers, shape.num_attention_heads, full.num_attention_heads),
        _spread(layers, shape.intermediate_size, full.intermediate_size),
    ]
    values = [
        shape.hidden_size / full.hidden_size,
        shape.num_hidden_layers / full.num_hidden_layers,
        cost(shape) / cost(full),
        sum(shape.num_attention_heads) / sum(full.num_attention_heads),
        sum(shape.intermediate_size) / sum(full.intermediate_size),
        *_layout(layers, full.num_hidden_layers),
        *(_prefix(subnet.hidden_size, full.hidden_size)),
    ]
    for width, kept, sizes in (
        (widths[0], subnet.num_attention_heads, full.num_attention_heads),
        (widths[1], subnet.intermediate_size, full.intermediate_size),
    ):
        present = width[list(layers)]
        values += [present.mean(), present.std(), present.min(), present.max(), _trend(present)]
        values += [present[: len(present) // 2 + 1].mean(), present[len(present) // 2 :].mean()]
        values += np.mean(
            [_prefix(entry, sizes[layer]) for layer, entry in zip(layers, kept, strict=True)], axis=0
        ).tolist()
        values += width.tolist()
    return np.array(values, dtype=np.float64)


def _spread(layers: Sequence[int], sizes: Sequence[int], full: Sequence[int]) -> np.ndarray:
    """For each layer of the super-network, the share of its entries that is kept."""
    width = np.zeros(len(full))
    for layer, size in zip(layers, sizes, strict=True):
        width[layer] = size / full[layer]
    return width


def _layout(layers: Sequence[int], total: int) -> list[float]:
    """Of the kept layers: where they begin, end and lie on average, and their longest run and gap, as shares."""
    gaps = np.diff([-1, *layers, total]) - 1
    run = longest = 1
    for before, after in pairwise(layers):
        run = run + 1 if after == before + 1 else 1
        longest = max(longest, run)
    return [
        layers[0] / total,
        (total - 1 - layers[-1]) / total,
        float(np.mean(layers)) / total,
        longest / total,
        float(gaps.max()) / total,
        float((gaps > 0).sum()) / total,
    ]


def _prefix(kept: Kept, total: int) -> list[float]:
    """Where kept entries lie: their mean index, and the share of them among the first as many."""
    size = count(kept)
    if isinstance(kept, int):
        return [(size - 1) / 2 / total, 1.0]
    chosen = np.array(indices(kept))
    return [float(chosen.mean()) / total, float((chosen < size).mean())]


def _trend(values: np.ndarray) -> float:
    """Slope over the layers."""
    return float(np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0]) if len(values) > 1 else 0.0
