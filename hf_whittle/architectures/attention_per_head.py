"""Decoders in which every attention head has keys and values of its own, and all heads fill the hidden size."""

from typing import TYPE_CHECKING, Any

from .dimensions import CHANNELS, HEAD_CHANNELS, HEADS, LAYERS, NEURONS, VOCABULARY
from .table import Axis, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DIMENSIONS = (CHANNELS, LAYERS, HEADS, HEAD_CHANNELS, NEURONS)
ATTENDING = Axis(HEADS, HEAD_CHANNELS)


def head_size(config: "PreTrainedConfig") -> int:
    """Channels of a head, which a student states and a stock configuration does not."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def read_sizes(config: "PreTrainedConfig", neurons: int) -> dict[Any, int]:
    """Sizes of a layer by its configuration, which states the number of neurons in its own way."""
    return {
        CHANNELS: config.hidden_size,
        HEADS: config.num_attention_heads,
        HEAD_CHANNELS: head_size(config),
        NEURONS: neurons,
        VOCABULARY: config.vocab_size,
    }


def write_sizes(sizes: Sizes, neurons: str) -> dict[str, int]:
    """Attributes of the configuration of a layer of these sizes; `neurons` is the name of that of the neurons."""
    return {
        "hidden_size": sizes[CHANNELS],
        "num_attention_heads": sizes[HEADS],
        "head_dim": sizes[HEAD_CHANNELS],
        neurons: sizes[NEURONS],
    }


def heads_must_fill_channels(config: "PreTrainedConfig", sizes: Sizes) -> str | None:
    """Why no stock class holds these sizes, if so."""
    heads, width, channels = sizes[HEADS], sizes[HEAD_CHANNELS], sizes[CHANNELS]
    if heads * width != channels:
        return f"its num_attention_heads * {width} must be its hidden_size, got {heads} and {channels}"
    return None
