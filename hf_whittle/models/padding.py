"""Sizes of a student that is padded so that all of its layers are alike."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..architectures.registry import get_architecture
from ..errors import SubnetError
from ..subnet import Shape, SubnetConfig, count

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def keeps_whole_heads(config: "PreTrainedConfig", subnet: SubnetConfig) -> bool:
    """Whether the heads of a student have all channels that the frequencies of a rotation are computed for."""
    if get_architecture(config).rotary is None:
        return True
    is_whole = subnet.head_dim is None or count(subnet.head_dim) == Shape.from_config(config).head_dim
    return is_whole and getattr(config, "rotary_pairs", None) is None


def padded_shape(config: "PreTrainedConfig", subnet: SubnetConfig) -> Shape:
    """The sizes of a student in the `padded` format: all layers alike, with the fewest heads that a stock class holds.

    Raises:
        SubnetError: if no stock class holds a student of this hidden size with at least as many heads.
    """
    subnet.validate(config)
    architecture, full = get_architecture(config), Shape.from_config(config)
    shape = subnet.shape.filled(full)
    if not keeps_whole_heads(config, subnet):
        raise SubnetError(
            f"a padded student needs heads of all channels, got head_dim={shape.head_dim}; use format='auto'"
        )
    most = {dimension: max(getattr(shape, dimension.name)) for dimension in architecture.per_layer}
    heads = architecture.per_layer[0]
    problem = None
    for number in range(most[heads], max(getattr(full, heads.name)) + 1):
        sizes = {**shape.of_layer(0), **most, heads: number}
        problem = architecture.stock_problem(config, sizes)
        if problem is None:
            layers = shape.num_hidden_layers
            padded: dict[str, Any] = {dimension.name: (sizes[dimension],) * layers for dimension in most}
            return replace(shape, **padded)
    raise SubnetError(
        f"a padded student of hidden_size={shape.hidden_size} cannot have {most[heads]} {heads.label} or more in every "
        f"layer: {problem}; use format='auto'"
    )
