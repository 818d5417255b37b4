"""Sizes of a student that is padded so that all of its layers are alike."""

from typing import TYPE_CHECKING

from ..errors import SubnetError
from ..subnet import Shape, SubnetConfig
from .architecture import head_dim

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def padded_shape(config: "PreTrainedConfig", subnet: SubnetConfig) -> Shape:
    """The sizes of a student in the `padded` format: all layers alike, with heads that fill the hidden size.

    Raises:
        SubnetError: if the heads are wider than the hidden size, or that is not a multiple of a head's channels.
    """
    subnet.validate(config)
    shape, width = subnet.shape, head_dim(config)
    heads, rest = divmod(shape.hidden_size, width)
    most = max(shape.num_attention_heads)
    if most > heads:
        raise SubnetError(
            f"a padded student needs num_attention_heads * {width} <= hidden_size in every layer, got {most} heads, "
            f"{most * width} channels wide, and hidden_size={shape.hidden_size}; use format='auto'"
        )
    if rest:
        raise SubnetError(
            f"a padded student needs a hidden_size that is a multiple of the {width} channels of a head, got "
            f"{shape.hidden_size}; use format='auto'"
        )
    layers = shape.num_hidden_layers
    return Shape(shape.hidden_size, (heads,) * layers, (max(shape.intermediate_size),) * layers)
