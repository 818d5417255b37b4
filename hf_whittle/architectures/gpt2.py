"""The table of GPT-2, whose matrices are transposed and whose positions are learned."""

import re
from typing import TYPE_CHECKING, Any

from ..errors import ArchitectureError
from . import attention_per_head as per_head
from .dimensions import CHANNELS, HEAD_CHANNELS, HEADS, NEURONS, POSITIONS, VOCABULARY
from .table import Architecture, Axis, Norms, Sizes, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CHANNELS = Axis(CHANNELS)
_VOCABULARY = Axis(VOCABULARY)
_NEURONS = Axis(NEURONS)
_QKV = Axis(3, HEADS, HEAD_CHANNELS)  # all queries, then all keys, then all values

_LAYER = "transformer.h.{layer}."


def _read_sizes(config: "PreTrainedConfig") -> dict[Any, int]:
    if config.scale_attn_by_inverse_layer_idx or config.add_cross_attention:
        raise ArchitectureError(
            "GPT-2 with scale_attn_by_inverse_layer_idx or add_cross_attention has no table: use a checkpoint without"
        )
    return {
        **per_head.read_sizes(config, config.n_inner or 4 * config.hidden_size),
        POSITIONS: config.max_position_embeddings,
    }


def _write_sizes(sizes: Sizes) -> dict[str, int]:
    return per_head.write_sizes(sizes, "n_inner")


def _module_sizes(sizes: Sizes, config: "PreTrainedConfig") -> dict[str, Any]:
    return {
        "attn.head_dim": sizes[HEAD_CHANNELS],
        "attn.split_size": sizes[HEADS] * sizes[HEAD_CHANNELS],
        "attn.scaling": sizes[HEAD_CHANNELS] ** -0.5 if config.scale_attn_weights else 1.0,
    }


def _oldest_transformers(config: dict[str, Any]) -> str:
    return "4.49"


ARCHITECTURE = Architecture(
    model_type="gpt2",
    prefix="GPT2",
    config_class="GPT2Config",
    model_class="GPT2Model",
    causal_class="GPT2LMHeadModel",
    dimensions=per_head.DIMENSIONS,
    layers="transformer.h",
    norms=Norms("layer", eps="layer_norm_epsilon"),
    heads=per_head.ATTENDING,
    keys=per_head.ATTENDING,
    read_sizes=_read_sizes,
    write_sizes=_write_sizes,
    module_sizes=_module_sizes,
    stock_problem=per_head.heads_must_fill_channels,
    leftovers=re.compile(r"attn\.bias$"),
    oldest_transformers=_oldest_transformers,
    weights=(
        Weight("transformer.wte.weight", (_VOCABULARY, _CHANNELS)),
        Weight("transformer.wpe.weight", (Axis(POSITIONS), _CHANNELS)),
        Weight(_LAYER + "ln_1.weight", (_CHANNELS,)),
        Weight(_LAYER + "ln_1.bias", (_CHANNELS,)),
        Weight(_LAYER + "attn.c_attn.weight", (_CHANNELS, _QKV), True, norm=_LAYER + "ln_1", is_transposed=True),
        Weight(_LAYER + "attn.c_attn.bias", (_QKV,)),
        Weight(_LAYER + "attn.c_proj.weight", (per_head.ATTENDING, _CHANNELS), True, is_transposed=True),
        Weight(_LAYER + "attn.c_proj.bias", (_CHANNELS,)),
        Weight(_LAYER + "ln_2.weight", (_CHANNELS,)),
        Weight(_LAYER + "ln_2.bias", (_CHANNELS,)),
        Weight(_LAYER + "mlp.c_fc.weight", (_CHANNELS, _NEURONS), True, norm=_LAYER + "ln_2", is_transposed=True),
        Weight(_LAYER + "mlp.c_fc.bias", (_NEURONS,)),
        Weight(_LAYER + "mlp.c_proj.weight", (_NEURONS, _CHANNELS), True, is_transposed=True),
        Weight(_LAYER + "mlp.c_proj.bias", (_CHANNELS,)),
        Weight("transformer.ln_f.weight", (_CHANNELS,)),
        Weight("transformer.ln_f.bias", (_CHANNELS,)),
        Weight(
            "lm_head.weight", (_VOCABULARY, _CHANNELS), True, shared_if="tie_word_embeddings", norm="transformer.ln_f"
        ),
    ),
)
