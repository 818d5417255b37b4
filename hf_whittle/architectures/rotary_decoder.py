"""Decoders in the manner of Llama: grouped queries, rotary embedding, gated MLP, norms before attention and MLP."""

from typing import TYPE_CHECKING, Any

from .dimensions import CHANNELS, HEAD_CHANNELS, KEY_VALUE_HEADS, LAYERS, NEURONS, QUERIES, VOCABULARY
from .table import Axis, Sizes, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DIMENSIONS = (CHANNELS, LAYERS, KEY_VALUE_HEADS, QUERIES, HEAD_CHANNELS, NEURONS)
ATTENDING = Axis(KEY_VALUE_HEADS, QUERIES, HEAD_CHANNELS)
KEYS = Axis(KEY_VALUE_HEADS, HEAD_CHANNELS)

_LAYER = "model.layers.{layer}."
_CHANNELS = Axis(CHANNELS)
_VOCABULARY = Axis(VOCABULARY)
_NEURONS = Axis(NEURONS)


def weights(
    *,
    input_bias: str | bool = False,
    output_bias: str | bool = False,
    mlp_bias: str | bool = False,
    has_head_norms: bool = False,
    has_norms_after: bool = False,
    is_parallel: bool = False,
) -> tuple[Weight, ...]:
    """Every weight of such a decoder.

    Args:
        input_bias (`str` or `bool`): whether queries, keys and values have a bias, or the attribute of the
            configuration that says so.
        output_bias (`str` or `bool`): the same of the output of attention.
        mlp_bias (`str` or `bool`): the same of the MLP.
        has_head_norms (`bool`): whether queries and keys pass a norm over the channels of a head.
        has_norms_after (`bool`): whether the outputs of attention and MLP pass a norm.
        is_parallel (`bool`): whether the MLP reads the norm before attention, and has none of its own.
    """
    before_mlp = "pre_feedforward_layernorm" if has_norms_after else "post_attention_layernorm"
    if is_parallel:
        before_mlp = "input_layernorm"
    after = ("post_attention_layernorm", "post_feedforward_layernorm") if has_norms_after else (None, None)
    found = [Weight("model.embed_tokens.weight", (_VOCABULARY, _CHANNELS))]

    def add_norm(name: str, axis: Axis = _CHANNELS) -> None:
        found.append(Weight(f"{name}.weight", (axis,)))

    def add_matrix(
        name: str, outputs: Axis, inputs: Axis, bias: str | bool, norm: str | None = None, norm_after: str | None = None
    ) -> None:
        before, behind = (each and _LAYER + each for each in (norm, norm_after))
        matrix = Weight(f"{_LAYER}{name}.weight", (outputs, inputs), True, norm=before, norm_after=behind)
        found.append(matrix)
        if bias:
            found.append(Weight(f"{_LAYER}{name}.bias", (outputs,), exists_if=bias if isinstance(bias, str) else None))

    add_norm(_LAYER + "input_layernorm")
    add_matrix("self_attn.q_proj", ATTENDING, _CHANNELS, input_bias, "input_layernorm")
    add_matrix("self_attn.k_proj", KEYS, _CHANNELS, input_bias, "input_layernorm")
    add_matrix("self_attn.v_proj", KEYS, _CHANNELS, input_bias, "input_layernorm")
    add_matrix("self_attn.o_proj", _CHANNELS, ATTENDING, output_bias, None, after[0])
    if has_head_norms:
        add_norm(_LAYER + "self_attn.q_norm", Axis(HEAD_CHANNELS))
        add_norm(_LAYER + "self_attn.k_norm", Axis(HEAD_CHANNELS))
    if has_norms_after:
        add_norm(_LAYER + "post_attention_layernorm")
    if not is_parallel:
        add_norm(_LAYER + before_mlp)
    add_matrix("mlp.gate_proj", _NEURONS, _CHANNELS, mlp_bias, before_mlp)
    add_matrix("mlp.up_proj", _NEURONS, _CHANNELS, mlp_bias, before_mlp)
    add_matrix("mlp.down_proj", _CHANNELS, _NEURONS, mlp_bias, None, after[1])
    if has_norms_after:
        add_norm(_LAYER + "post_feedforward_layernorm")
    add_norm("model.norm")
    found.append(
        Weight("lm_head.weight", (_VOCABULARY, _CHANNELS), True, shared_if="tie_word_embeddings", norm="model.norm")
    )
    return tuple(found)


def read_sizes(config: "PreTrainedConfig") -> dict[Any, int]:
    """Sizes of a layer by its configuration."""
    key_value_heads = config.num_key_value_heads or config.num_attention_heads
    return {
        CHANNELS: config.hidden_size,
        KEY_VALUE_HEADS: key_value_heads,
        QUERIES: config.num_attention_heads // key_value_heads,
        HEAD_CHANNELS: getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        NEURONS: config.intermediate_size,
        VOCABULARY: config.vocab_size,
    }


def write_sizes(sizes: Sizes) -> dict[str, int]:
    """Attributes of the configuration of a layer of these sizes."""
    return {
        "hidden_size": sizes[CHANNELS],
        "num_attention_heads": sizes[KEY_VALUE_HEADS] * sizes[QUERIES],
        "num_key_value_heads": sizes[KEY_VALUE_HEADS],
        "head_dim": sizes[HEAD_CHANNELS],
        "intermediate_size": sizes[NEURONS],
    }


def module_sizes(sizes: Sizes, config: "PreTrainedConfig") -> dict[str, Any]:
    """Attributes of a layer's modules; attention is scaled by the channels of a head."""
    return {**unscaled_module_sizes(sizes, config), "self_attn.scaling": sizes[HEAD_CHANNELS] ** -0.5}


def unscaled_module_sizes(sizes: Sizes, config: "PreTrainedConfig") -> dict[str, Any]:
    """Attributes of a layer's modules where the scale of attention does not depend on sizes."""
    return {"self_attn.head_dim": sizes[HEAD_CHANNELS], "self_attn.num_key_value_groups": sizes[QUERIES]}


def no_problem(config: "PreTrainedConfig", sizes: Sizes) -> str | None:
    """A stock class holds layers of any sizes that are all alike."""
    return None


def heads_must_divide_channels(config: "PreTrainedConfig", sizes: Sizes) -> str | None:
    """A stock configuration refuses a number of channels that is not a multiple of the number of attention heads."""
    heads = sizes[KEY_VALUE_HEADS] * sizes[QUERIES]
    if sizes[CHANNELS] % heads:
        return f"its hidden_size must be a multiple of the number of attention heads, got {sizes[CHANNELS]} and {heads}"
    return None


def all_channels_rotated(config: "PreTrainedConfig") -> int:
    return read_sizes(config)[HEAD_CHANNELS]


def former_rotary_settings(config: "PreTrainedConfig") -> dict[str, Any]:
    """The rotary settings under the names that transformers 4 reads, where not the defaults.

    Newer versions read `rope_scaling`, too, and then `rope_theta`, whose default may be another one.
    """
    rotary: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    theta = rotary.pop("rope_theta", _FORMER_THETA)
    is_default = theta == _FORMER_THETA == getattr(config, "default_theta", _FORMER_THETA)
    settings: dict[str, Any] = {} if is_default else {"rope_theta": theta}
    if rotary.get("rope_type", "default") != "default":
        settings["rope_scaling"] = rotary
    return settings


_FORMER_THETA = 10_000


def oldest_transformers(config: dict[str, Any]) -> str:
    """The oldest version of transformers that reads a stock student, from its `config.json`."""
    rotary = config.get("rope_parameters") or {}
    is_seen = rotary.get("rope_type", "default") == "default" or config.get("rope_scaling")
    is_theta_seen = config.get("rope_theta", _FORMER_THETA) == rotary.get("rope_theta", _FORMER_THETA)
    return "4.49" if is_seen and is_theta_seen and is_scaled_alike(rotary) else "5.0"


def is_scaled_alike(rotary: dict[str, Any]) -> bool:
    """Whether transformers 4 scales a rotation as newer versions do; yarn and longrope read other settings there."""
    return rotary.get("rope_type", "default") in ("default", "linear", "dynamic", "llama3")
