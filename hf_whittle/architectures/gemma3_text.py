"""The table of Gemma 3 for text: norms after attention and MLP too, and a scaled embedding."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import rotary_decoder as decoder
from .dimensions import CHANNELS
from .llama import ARCHITECTURE as LLAMA
from .table import Norms, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _embedding_scale(config: "PreTrainedConfig", sizes: Sizes) -> dict[str, Any]:
    """A stock model scales embeddings by the root of its channels; a student's stay as they are."""
    stated = getattr(config, "embed_scale", None)
    return {"embed_scale": config.hidden_size**0.5 if stated is None else stated}


def _stock_problem(config: "PreTrainedConfig", sizes: Sizes) -> str | None:
    if sizes[CHANNELS] ** 0.5 != _embedding_scale(config, sizes)["embed_scale"]:
        return f"it scales embeddings by the root of its hidden_size, which must stay, got {sizes[CHANNELS]}"
    return decoder.heads_must_divide_channels(config, sizes)


_FORMER = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}
"""By type of layer, the former name of the base of its rotation and its default."""


def _former_settings(config: "PreTrainedConfig") -> dict[str, Any]:
    """The rotary settings under the names that transformers 4 reads, where not its defaults."""
    rotary: dict[str, Any] = dict(config.rope_parameters or {})
    settings: dict[str, Any] = {}
    for layer_type, (name, default) in _FORMER.items():
        theta = (rotary.get(layer_type) or {}).get("rope_theta", default)
        if theta != default:
            settings[name] = theta
    full = {name: value for name, value in (rotary.get("full_attention") or {}).items() if name != "rope_theta"}
    if full.get("rope_type", "default") != "default":
        settings["rope_scaling"] = full
    return settings


def _oldest_transformers(config: dict[str, Any]) -> str:
    rotary = config.get("rope_parameters") or {}
    full, sliding = (rotary.get(layer_type) or {} for layer_type in _FORMER)
    is_seen = decoder.is_scaled_alike(full) and sliding.get("rope_type", "default") == "default"
    return "4.53" if is_seen else "5.0"  # version 4 scales the rotation of full attention alone


ARCHITECTURE = replace(
    LLAMA,
    model_type="gemma3_text",
    prefix="Gemma3",
    config_class="Gemma3TextConfig",
    model_class="Gemma3TextModel",
    causal_class="Gemma3ForCausalLM",
    weights=decoder.weights(
        input_bias="attention_bias", output_bias="attention_bias", has_head_norms=True, has_norms_after=True
    ),
    norms=Norms("rms", eps="rms_norm_eps", offset=1.0),
    module_sizes=decoder.unscaled_module_sizes,
    stock_problem=_stock_problem,
    student_values=_embedding_scale,
    layer_lists=("layer_types",),
    capped_if="final_logit_softcapping",
    former_settings=_former_settings,
    former_names=("rope_theta", "rope_local_base_freq", "rope_scaling"),
    oldest_transformers=_oldest_transformers,
)
