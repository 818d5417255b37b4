"""The table of Mistral."""

from dataclasses import replace

from . import rotary_decoder as decoder
from .llama import ARCHITECTURE as LLAMA

ARCHITECTURE = replace(
    LLAMA,
    model_type="mistral",
    prefix="Mistral",
    config_class="MistralConfig",
    model_class="MistralModel",
    causal_class="MistralForCausalLM",
    weights=decoder.weights(),
    stock_problem=decoder.no_problem,
)
