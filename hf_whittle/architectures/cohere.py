"""The table of Cohere, such as Command-R: one norm before both attention and MLP, and neighbouring rotary channels."""

from dataclasses import replace

from . import rotary_decoder as decoder
from .dimensions import HEAD_CHANNELS, KEY_VALUE_HEADS, QUERIES
from .llama import ARCHITECTURE as LLAMA
from .table import Axis, Norms, Weight

_EMBEDDING, *_OTHERS = decoder.weights(input_bias="attention_bias", output_bias="attention_bias", is_parallel=True)
_ATTENTION = "model.layers.{layer}.self_attn."
_WIDTH = Axis(HEAD_CHANNELS)

ARCHITECTURE = replace(
    LLAMA,
    model_type="cohere",
    prefix="Cohere",
    config_class="CohereConfig",
    model_class="CohereModel",
    causal_class="CohereForCausalLM",
    weights=(
        _EMBEDDING,
        Weight(_ATTENTION + "q_norm.weight", (Axis(KEY_VALUE_HEADS, QUERIES), _WIDTH), exists_if="use_qk_norm"),
        Weight(_ATTENTION + "k_norm.weight", (Axis(KEY_VALUE_HEADS), _WIDTH), exists_if="use_qk_norm"),
        *_OTHERS,
    ),
    norms=Norms("layer", eps="layer_norm_eps"),
    stock_problem=decoder.no_problem,
    is_interleaved=True,
    parallel_if=True,
    logit_scale="logit_scale",
)
