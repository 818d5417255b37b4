"""Sort a super-network by importance, so that coarse subnets keep the best entries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..architectures.dimensions import HEAD_CHANNELS, LAYERS, VOCABULARY, Dimension
from ..architectures.table import Axis
from ..compat.torch import uncompiled
from ..errors import SubnetError
from ..fingerprints import model_fingerprint
from ..models.elastic import take
from ..models.rows import unsliced_sizes
from ..subnet import Kept, Shape, SubnetConfig, indices
from .criteria import model_weights
from .scores import ImportanceScores, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_UNSORTED = (LAYERS, HEAD_CHANNELS, VOCABULARY)
"""Dimensions whose order matters: layers follow each other, rotary frequencies belong to channels, ids to tokens."""


@dataclass(frozen=True)
class Order:
    """Original indices of the entries of a sorted super-network: entry `i` was entry `order[i]` before.

    Args:
        entries (`Mapping[str, tuple]`): by the name of a dimension, the indices of its entries, or a tuple of these by
            layer where each layer keeps entries of its own; dimensions that are not sorted are left out.
    """

    entries: Mapping[str, Any]

    @classmethod
    def by(cls, scores: ImportanceScores) -> "Order":
        """Sort by descending score; equal scores keep their order."""

        def descending(values: np.ndarray) -> tuple[int, ...]:
            return tuple(np.argsort(-values, kind="stable").tolist())

        unsorted = [dimension.name for dimension in _UNSORTED]
        return cls(
            {
                name: tuple(map(descending, of_entries)) if isinstance(of_entries, tuple) else descending(of_entries)
                for name, of_entries in scores.entries.items()
                if name not in unsorted
            }
        )

    def of(self, dimension: Dimension, layer: int | None = None) -> tuple[int, ...] | None:
        """The order along a dimension; `None` if it is not sorted."""
        order = self.entries.get(dimension.name)
        return order[layer] if order is not None and dimension.per_layer else order

    def original(self, subnet: SubnetConfig) -> SubnetConfig:
        """Map a subnet of the sorted super-network to the original indices."""

        def before(dimension: Dimension, kept: Kept, layer: int | None = None) -> tuple[int, ...]:
            order = self.of(dimension, layer)
            assert order is not None
            return tuple(sorted(order[index] for index in indices(kept)))

        return subnet.replaced(
            {
                dimension: tuple(
                    before(dimension, kept, layer)
                    for layer, kept in zip(subnet.layers, subnet.kept(dimension), strict=True)
                )
                if dimension.per_layer
                else before(dimension, subnet.kept(dimension))
                for dimension in subnet.dimensions
                if dimension.name in self.entries
            }
        )


def sort_by_importance(model: "PreTrainedModel", scores: ImportanceScores) -> Order:
    """Sort heads, neurons and channels of a model by importance, in place, so that a prefix keeps the best of them.

    The model computes the same function, up to the rounding of sums in another order. Key-value heads move with their
    queries, whose order is the same in all of them. Layers and channels of a head are not sorted, since their order
    matters; a fine-grained search space can leave out any of them.

    Args:
        model (`PreTrainedModel`): a super-network, a stock model or a student.
        scores (`ImportanceScores`): scores of this model.

    Returns:
        `Order`: original indices of the entries.

    Raises:
        SubnetError: if the scores belong to another model, or a subnet is active.
    """
    model = uncompiled(model)
    check_whole(model)
    shape = Shape.from_config(model.config)
    scores.check(shape)
    if scores.settings.get("model", fingerprint := model_fingerprint(model)) != fingerprint:
        raise SubnetError("these scores belong to another model, or this one was sorted since; score it again")
    order = Order.by(scores)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for weight, layer in model_weights(model):
            parameter = parameters[weight.name.format(layer=layer)]
            sizes = {**unsliced_sizes(model.config), **shape.of_layer(layer or 0)}
            for dim, axis in enumerate(weight.axes):
                if any(dimension.name in order.entries for dimension in axis.dimensions):
                    rows = torch.from_numpy(_rows(axis, axis.factor_sizes(sizes), order, layer))
                    parameter.copy_(take(parameter, dim, rows.to(parameter.device)))
    return order


def _rows(axis: Axis, sizes: Sequence[int], order: Order, layer: int | None) -> np.ndarray:
    """Original rows of a sorted axis, `(rows,)`."""
    orders = (order.of(factor, layer) if isinstance(factor, Dimension) else None for factor in axis.factors)
    entries = [range(size) if kept is None else kept for kept, size in zip(orders, sizes, strict=True)]
    return np.ravel_multi_index(np.ix_(*entries), tuple(sizes)).flatten()
