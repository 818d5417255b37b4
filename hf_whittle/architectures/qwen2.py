"""The table of Qwen2 and Qwen2.5."""

from dataclasses import replace

from . import rotary_decoder as decoder
from .llama import ARCHITECTURE as LLAMA

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
)
