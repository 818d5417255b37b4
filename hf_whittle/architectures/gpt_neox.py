"""The table of GPT-NeoX and Pythia."""

import re
from typing import TYPE_CHECKING, Any

from . import attention_per_head as per_head
from .dimensions import CHANNELS, HEAD_CHANNELS, HEADS, NEURONS, VOCABULARY
from .table import Architecture, Axis, Norms, Sizes, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_VOCABULARY = Axis(VOCABULARY)
_CHANNELS = Axis(CHANNELS)
_QKV = Axis(HEADS, 3, HEAD_CHANNELS)  # query, key and value of head 0, then of head 1, and so on
_NEURONS = Axis(NEURONS)

_LAYER = "gpt_neox.layers.{layer}."


def _read_sizes(config: "PreTrainedConfig") -> dict[Any, int]:
    return per_head.read_sizes(config, config.intermediate_size)


def _write_sizes(sizes: Sizes) -> dict[str, int]:
    return per_head.write_sizes(sizes, "intermediate_size")


def _module_sizes(sizes: Sizes, config: "PreTrainedConfig") -> dict[str, Any]:
    return {"attention.head_size": sizes[HEAD_CHANNELS], "attention.scaling": sizes[HEAD_CHANNELS] ** -0.5}


def _rotated(config: "PreTrainedConfig") -> int:
    factor = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    rotated = int(per_head.head_size(config) * factor)
    return rotated + rotated % 2  # the stock model rotates whole pairs


_FORMER_SETTINGS = {"rotary_pct": ("partial_rotary_factor", 0.25), "rotary_emb_base": ("rope_theta", 10_000)}
"""Settings of transformers 4: their names among today's `rope_parameters`, and their defaults."""


def _former_settings(config: "PreTrainedConfig") -> dict[str, Any]:
    """The rotary settings under the names that transformers 4 reads, where not its defaults.

    Newer versions read `rope_parameters`. Version 4 does not, and would ignore a scaled rotation; an empty
    `rope_scaling`, which newer versions ignore, makes it stop with an error instead.
    """
    rotary: dict[str, Any] = dict(config.rope_parameters or {})
    settings: dict[str, Any] = {
        name: rotary[parameter]
        for name, (parameter, default) in _FORMER_SETTINGS.items()
        if rotary.get(parameter, default) != default
    }
    if rotary.get("rope_type", "default") != "default":
        settings["rope_scaling"] = {}
    return settings


def _oldest_transformers(config: dict[str, Any]) -> str:
    rotary = config.get("rope_parameters") or {}
    is_seen = rotary.get("rope_type", "default") == "default" and all(
        config.get(name, default) == rotary.get(parameter, default)
        for name, (parameter, default) in _FORMER_SETTINGS.items()
    )
    return "4.49" if is_seen else "5.0"  # version 4 does not know `rope_parameters`


ARCHITECTURE = Architecture(
    model_type="gpt_neox",
    prefix="GPTNeoX",
    config_class="GPTNeoXConfig",
    model_class="GPTNeoXModel",
    causal_class="GPTNeoXForCausalLM",
    dimensions=per_head.DIMENSIONS,
    layers="gpt_neox.layers",
    norms=Norms("layer", eps="layer_norm_eps"),
    heads=per_head.ATTENDING,
    keys=per_head.ATTENDING,
    read_sizes=_read_sizes,
    write_sizes=_write_sizes,
    module_sizes=_module_sizes,
    stock_problem=per_head.heads_must_fill_channels,
    rotary="gpt_neox.rotary_emb",
    rotated=_rotated,
    parallel_if="use_parallel_residual",
    leftovers=re.compile(r"attention\.(bias|masked_bias)$|rotary_emb\.inv_freq$"),
    former_settings=_former_settings,
    former_names=(*_FORMER_SETTINGS, "rope_scaling"),
    oldest_transformers=_oldest_transformers,
    weights=(
        Weight("gpt_neox.embed_in.weight", (_VOCABULARY, _CHANNELS)),
        Weight(_LAYER + "input_layernorm.weight", (_CHANNELS,)),
        Weight(_LAYER + "input_layernorm.bias", (_CHANNELS,)),
        Weight(
            _LAYER + "attention.query_key_value.weight",
            (_QKV, _CHANNELS),
            is_matmul=True,
            norm=_LAYER + "input_layernorm",
        ),
        Weight(_LAYER + "attention.query_key_value.bias", (_QKV,), exists_if="attention_bias"),
        Weight(_LAYER + "attention.dense.weight", (_CHANNELS, per_head.ATTENDING), is_matmul=True),
        Weight(_LAYER + "attention.dense.bias", (_CHANNELS,), exists_if="attention_bias"),
        Weight(_LAYER + "post_attention_layernorm.weight", (_CHANNELS,)),
        Weight(_LAYER + "post_attention_layernorm.bias", (_CHANNELS,)),
        Weight(
            _LAYER + "mlp.dense_h_to_4h.weight",
            (_NEURONS, _CHANNELS),
            is_matmul=True,
            norm=_LAYER + "post_attention_layernorm",
        ),
        Weight(_LAYER + "mlp.dense_h_to_4h.bias", (_NEURONS,)),
        Weight(_LAYER + "mlp.dense_4h_to_h.weight", (_CHANNELS, _NEURONS), is_matmul=True),
        Weight(_LAYER + "mlp.dense_4h_to_h.bias", (_CHANNELS,)),
        Weight("gpt_neox.final_layer_norm.weight", (_CHANNELS,)),
        Weight("gpt_neox.final_layer_norm.bias", (_CHANNELS,)),
        Weight(
            "lm_head.weight",
            (_VOCABULARY, _CHANNELS),
            is_matmul=True,
            shared_if="tie_word_embeddings",
            file_name="embed_out.weight",
            norm="gpt_neox.final_layer_norm",
        ),
    ),
)
