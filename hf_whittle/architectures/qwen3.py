"""The table of Qwen3: Qwen2 without biases, and with a norm of queries and of keys."""

from dataclasses import replace
from typing import Any

from . import rotary_decoder as decoder
from .qwen2 import ARCHITECTURE as QWEN2


def _oldest_transformers(config: dict[str, Any]) -> str:
    return max(QWEN2.oldest_transformers(config), "4.51")


ARCHITECTURE = replace(
    QWEN2,
    model_type="qwen3",
    prefix="Qwen3",
    config_class="Qwen3Config",
    model_class="Qwen3Model",
    causal_class="Qwen3ForCausalLM",
    weights=decoder.weights(input_bias="attention_bias", output_bias="attention_bias", has_head_norms=True),
    oldest_transformers=_oldest_transformers,
)
