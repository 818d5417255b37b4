"""Decoders in which every attention head has keys and values of its own, and all heads fill the hidden size."""

from typing import TYPE_CHECKING

from .dimensions import CHANNELS, HEAD_CHANNELS, HEADS
from .table import Axis, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENDING = Axis(HEADS, HEAD_CHANNELS)


def head_size(config: "PreTrainedConfig") -> int:
    """Channels of a head, which a student states and a stock configuration does not."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def heads_must_fill_channels(config: "PreTrainedConfig", sizes: Sizes) -> str | None:
    """Why no stock class holds these sizes, if so."""
    heads, width, channels = sizes[HEADS], sizes[HEAD_CHANNELS], sizes[CHANNELS]
    if heads * width != channels:
        return f"its num_attention_heads * {width} must be its hidden_size, got {heads} and {channels}"
    return None
