"""The table of Qwen2 and Qwen2.5."""

from dataclasses import replace
from typing import Any

from . import rotary_decoder as decoder
from .llama import ARCHITECTURE as LLAMA


def _oldest_transformers(config: dict[str, Any]) -> str:
    """Version 4.53 was the first in which layers that slide and others may be in any order."""
    slides = "sliding_attention" in (config.get("layer_types") or ())
    return max(decoder.oldest_transformers(config), "4.53" if slides else "4.49")


ARCHITECTURE = replace(
    LLAMA,
    model_type="qwen2",
    prefix="Qwen2",
    config_class="Qwen2Config",
    model_class="Qwen2Model",
    causal_class="Qwen2ForCausalLM",
    weights=decoder.weights(input_bias=True),
    stock_problem=decoder.no_problem,
    layer_lists=("layer_types",),
    oldest_transformers=_oldest_transformers,
)
