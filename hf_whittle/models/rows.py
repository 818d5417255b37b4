"""Rows of weights that a subnet keeps."""

import math
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.dimensions import HEAD_CHANNELS, Dimension
from ..architectures.registry import get_architecture, head_channels, rotated_channels
from ..architectures.table import Axis
from ..compat.transformers import first_layer
from ..subnet import Kept, Shape, SubnetConfig, count, indices


class KeptRows:
    """The rows of every axis of a model's weights that a subnet keeps.

    Args:
        config (`PreTrainedConfig`): the model's.
        subnet (`SubnetConfig`): the subnet.
    """

    def __init__(self, config: PreTrainedConfig, subnet: SubnetConfig):
        self._config, self._subnet, self._full = config, subnet, Shape.from_config(config)
        self._unsliced = unsliced_sizes(config)
        self._head_channels: tuple[int, ...] | None = None
        if subnet.head_dim is not None and count(subnet.head_dim) < self._full.size(HEAD_CHANNELS):
            order = head_channels(config)
            self._head_channels = tuple(sorted(order[entry] for entry in indices(subnet.head_dim)))
        self._known: dict[tuple[Axis, int | None, Any], int | torch.Tensor | None] = {}

    def __call__(self, axis: Axis, position: int | None = None, device: Any = None) -> int | torch.Tensor | None:
        """The kept rows of an axis, in the form that `elastic.take` expects.

        Args:
            axis (`Axis`): the axis.
            position (`int`, *optional*): the weight's layer, counted among the kept layers; `None` outside of layers.
            device (*optional*): device for a vector of indices.
        """
        if not any(dimension.per_layer for dimension in axis.dimensions):
            position = None
        key = (axis, position, device)
        if key not in self._known:
            self._known[key] = self._rows(axis, position, device)
        return self._known[key]

    def rotated(self) -> torch.Tensor | None:
        """Channels of a rotary embedding that are kept; `None` if all are."""
        if self._head_channels is None:
            return None
        rotated = rotated_channels(self._config)
        return torch.tensor([channel for channel in self._head_channels if channel < rotated], dtype=torch.long)

    def _rows(self, axis: Axis, position: int | None, device: Any) -> int | torch.Tensor | None:
        kept = [self._kept(factor, position) for factor in axis.factors]
        if all(entries is None for entries in kept):
            return None
        layer = 0 if position is None else self._subnet.layers[position]
        sizes = axis.factor_sizes({**self._unsliced, **self._full.of_layer(layer)})
        chosen = [size if entries is None else entries for entries, size in zip(kept, sizes, strict=True)]
        first, *others = zip(chosen, sizes, strict=True)
        if isinstance(first[0], int) and all(entries == size for entries, size in others):
            return first[0] * math.prod(size for _, size in others)
        rows = torch.zeros(1, dtype=torch.long)
        for entries, size in zip(chosen, sizes, strict=True):
            factor = torch.arange(entries) if isinstance(entries, int) else torch.tensor(entries)
            rows = (rows[:, None] * size + factor).flatten()
        return rows.to(device)

    def _kept(self, factor: Dimension | int, position: int | None) -> Kept | None:
        """Kept entries of a factor of an axis; `None` if it is kept whole."""
        if not isinstance(factor, Dimension) or not factor.is_sliced:
            return None
        if factor is HEAD_CHANNELS:
            return self._head_channels
        kept = self._subnet.kept(factor)
        if kept is None or not factor.per_layer:
            return kept
        assert position is not None
        return kept[position]


def unsliced_sizes(config: PreTrainedConfig) -> dict[Dimension, int]:
    """Sizes of the dimensions of which no part can be kept."""
    sizes = get_architecture(config).read_sizes(first_layer(config))
    return {dimension: size for dimension, size in sizes.items() if not dimension.is_sliced}
