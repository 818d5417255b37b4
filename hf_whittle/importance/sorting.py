"""Sort a super-network by importance, so that coarse subnets keep the best entries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..compat import uncompiled
from ..errors import SubnetError
from ..fingerprints import model_fingerprint
from ..models.architecture import Dimension, head_dim
from ..models.elastic import rows, take
from ..subnet import Kept, Shape, SubnetConfig, indices
from .criteria import model_weights
from .scores import ImportanceScores, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Order:
    """Original indices of the entries of a sorted super-network: entry `i` was entry `order[i]` before.

    Args:
        channels (`tuple[int, ...]`): indices of channels.
        heads (`tuple[tuple[int, ...], ...]`): indices of the heads of each layer.
        neurons (`tuple[tuple[int, ...], ...]`): indices of the neurons of each layer.
    """

    channels: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @classmethod
    def by(cls, scores: ImportanceScores) -> "Order":
        """Sort by descending score; equal scores keep their order."""

        def descending(values: np.ndarray) -> tuple[int, ...]:
            return tuple(np.argsort(-values, kind="stable").tolist())

        return cls(
            channels=descending(scores.channels),
            heads=tuple(map(descending, scores.heads)),
            neurons=tuple(map(descending, scores.neurons)),
        )

    def of(self, dimension: Dimension, layer: int | None) -> tuple[int, ...] | None:
        """The order along a dimension; `None` if it is not sorted."""
        if dimension is Dimension.CHANNELS:
            return self.channels
        in_layer = {Dimension.HEADS: self.heads, Dimension.NEURONS: self.neurons}.get(dimension)
        return None if in_layer is None or layer is None else in_layer[layer]

    def original(self, subnet: SubnetConfig) -> SubnetConfig:
        """Map a subnet of the sorted super-network to the original indices."""

        def before(order: tuple[int, ...], kept: Kept) -> tuple[int, ...]:
            return tuple(sorted(order[index] for index in indices(kept)))

        def in_layers(orders: tuple[tuple[int, ...], ...], kept: tuple[Kept, ...]) -> tuple[Kept, ...]:
            return tuple(before(orders[layer], entry) for layer, entry in zip(subnet.layers, kept, strict=True))

        return SubnetConfig(
            hidden_size=before(self.channels, subnet.hidden_size),
            num_hidden_layers=subnet.num_hidden_layers,
            num_attention_heads=in_layers(self.heads, subnet.num_attention_heads),
            intermediate_size=in_layers(self.neurons, subnet.intermediate_size),
        )


def sort_by_importance(model: "PreTrainedModel", scores: ImportanceScores) -> Order:
    """Sort heads, neurons and channels of a model by importance, in place, so that a prefix keeps the best of them.

    The model computes the same function, up to the rounding of sums in another order. Layers are not sorted, since
    their order matters; a fine-grained search space can leave out any of them.

    Args:
        model (`PreTrainedModel`): a super-network, a stock GPT-NeoX or a student.
        scores (`ImportanceScores`): scores of this model.

    Returns:
        `Order`: original indices of the entries.

    Raises:
        SubnetError: if the scores belong to another model, or a subnet is active.
    """
    model = uncompiled(model)
    check_whole(model)
    scores.check(Shape.from_config(model.config))
    if scores.settings.get("model", fingerprint := model_fingerprint(model)) != fingerprint:
        raise SubnetError("these scores belong to another model, or this one was sorted since; score it again")
    order = Order.by(scores)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for weight, layer in model_weights(model):
            parameter = parameters[weight.name.format(layer=layer)]
            for dim, axis in enumerate(weight.axes):
                entries = order.of(axis.dimension, layer)
                if entries is not None:
                    block = axis.block_size(head_dim(model.config))
                    parameter.copy_(take(parameter, dim, rows(entries, block, parameter.device)))
    return order
