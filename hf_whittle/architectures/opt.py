"""The table of OPT."""

from typing import TYPE_CHECKING, Any

from ..compat.transformers import lacks_last_norm
from ..errors import ArchitectureError
from . import attention_per_head as per_head
from .dimensions import CHANNELS, HEAD_CHANNELS, HEADS, NEURONS, POSITIONS, VOCABULARY
from .table import Architecture, Axis, Norms, Sizes, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CHANNELS = Axis(CHANNELS)
_VOCABULARY = Axis(VOCABULARY)
_NEURONS = Axis(NEURONS)

_DECODER = "model.decoder."
_LAYER = _DECODER + "layers.{layer}."
_POSITION_OFFSET = 2


def _read_sizes(config: "PreTrainedConfig") -> dict[Any, int]:
    if not config.do_layer_norm_before or lacks_last_norm(config):
        raise ArchitectureError(
            "OPT with norms after attention and MLP, or without its last norm, has no table: use another size than 350m"
        )
    if not config.layer_norm_elementwise_affine:
        raise ArchitectureError(
            "OPT with norms without weights (layer_norm_elementwise_affine=False) has no table: use a checkpoint with"
        )
    if config.word_embed_proj_dim != config.hidden_size:
        raise ArchitectureError(
            f"OPT has no table with word_embed_proj_dim={config.word_embed_proj_dim} other than hidden_size="
            f"{config.hidden_size}: use another size than 350m"
        )
    return {**per_head.read_sizes(config, config.ffn_dim), POSITIONS: config.max_position_embeddings + _POSITION_OFFSET}


def _write_sizes(sizes: Sizes) -> dict[str, int]:
    return {**per_head.write_sizes(sizes, "ffn_dim"), "word_embed_proj_dim": sizes[CHANNELS]}


def _module_sizes(sizes: Sizes, config: "PreTrainedConfig") -> dict[str, Any]:
    return {
        "self_attn.num_heads": sizes[HEADS],
        "self_attn.head_dim": sizes[HEAD_CHANNELS],
        "self_attn.scaling": sizes[HEAD_CHANNELS] ** -0.5,
    }


def _oldest_transformers(config: dict[str, Any]) -> str:
    return "4.49"


def _linear(name: str, outputs: Axis, inputs: Axis, norm: str | None = None) -> tuple[Weight, Weight]:
    matrix = Weight(f"{_LAYER}{name}.weight", (outputs, inputs), True, norm=norm and _LAYER + norm)
    return matrix, Weight(f"{_LAYER}{name}.bias", (outputs,), exists_if="enable_bias")


def _norm(name: str) -> tuple[Weight, Weight]:
    return Weight(f"{name}.weight", (_CHANNELS,)), Weight(f"{name}.bias", (_CHANNELS,))


ARCHITECTURE = Architecture(
    model_type="opt",
    prefix="OPT",
    config_class="OPTConfig",
    model_class="OPTModel",
    causal_class="OPTForCausalLM",
    dimensions=per_head.DIMENSIONS,
    layers="model.decoder.layers",
    norms=Norms("layer", eps=1e-5),
    heads=per_head.ATTENDING,
    keys=per_head.ATTENDING,
    read_sizes=_read_sizes,
    write_sizes=_write_sizes,
    module_sizes=_module_sizes,
    stock_problem=per_head.heads_must_fill_channels,
    oldest_transformers=_oldest_transformers,
    weights=(
        Weight(_DECODER + "embed_tokens.weight", (_VOCABULARY, _CHANNELS)),
        Weight(_DECODER + "embed_positions.weight", (Axis(POSITIONS), _CHANNELS)),
        *_norm(_LAYER + "self_attn_layer_norm"),
        *_linear("self_attn.q_proj", per_head.ATTENDING, _CHANNELS, "self_attn_layer_norm"),
        *_linear("self_attn.k_proj", per_head.ATTENDING, _CHANNELS, "self_attn_layer_norm"),
        *_linear("self_attn.v_proj", per_head.ATTENDING, _CHANNELS, "self_attn_layer_norm"),
        *_linear("self_attn.out_proj", _CHANNELS, per_head.ATTENDING),
        *_norm(_LAYER + "final_layer_norm"),
        *_linear("fc1", _NEURONS, _CHANNELS, "final_layer_norm"),
        *_linear("fc2", _CHANNELS, _NEURONS),
        *_norm(_DECODER + "final_layer_norm"),
        Weight(
            "lm_head.weight",
            (_VOCABULARY, _CHANNELS),
            True,
            shared_if="tie_word_embeddings",
            norm=_DECODER + "final_layer_norm",
        ),
    ),
)
