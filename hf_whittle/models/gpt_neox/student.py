"""Configuration and class of a student extracted from GPT-NeoX."""

import re
from typing import Any

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ...errors import SubnetError
from ...subnet import SubnetConfig
from ..architecture import head_dim
from ..padding import padded_shape
from .configuration_whittle_gpt_neox import OLDEST_TRANSFORMERS, WhittleGPTNeoXConfig
from .modeling_whittle_gpt_neox import WhittleGPTNeoXForCausalLM

_NOT_INHERITED = {
    "model_type", "architectures", "auto_map", "per_layer_config", "head_dim", "transformers_version", "_name_or_path",
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
}  # fmt: skip

LEFTOVERS = re.compile(r"attention\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
"""Tensors in files of older releases, which transformers skips without a warning."""
_FORMER_SETTINGS = {"rotary_pct": ("partial_rotary_factor", 0.25), "rotary_emb_base": ("rope_theta", 10_000)}
"""Settings of transformers 4: their names among today's `rope_parameters`, and their defaults."""


def fits_stock(config: GPTNeoXConfig, subnet: SubnetConfig) -> bool:
    """Whether a stock `GPTNeoXForCausalLM` can hold a student: it is uniform and its heads fill the hidden size."""
    shape = subnet.shape
    return subnet.is_uniform and shape.num_attention_heads[0] * head_dim(config) == shape.hidden_size


def student_config(config: GPTNeoXConfig, subnet: SubnetConfig, format: str = "auto") -> GPTNeoXConfig:
    """The configuration of a subnet's student.

    Args:
        config (`GPTNeoXConfig`): the super-network's.
        subnet (`SubnetConfig`): the subnet.
        format (`str`): `"stock"`, `"whittle"`, `"padded"`, or `"auto"` for stock where that can hold the student.

    Raises:
        SubnetError: if the format cannot hold the student.
    """
    shape = subnet.shape
    stock = fits_stock(config, subnet) if format == "auto" else format in ("stock", "padded")
    if format == "padded":
        shape = padded_shape(config, subnet)
    elif stock and not fits_stock(config, subnet):
        raise SubnetError(
            f"stock GPT-NeoX holds only layers that are all alike, with num_attention_heads * {head_dim(config)} = "
            f"hidden_size, got {subnet.shape}; use format='auto' or 'padded', or search with stock_only=True"
        )
    values = {name: value for name, value in config.to_dict().items() if name not in _NOT_INHERITED}
    values |= {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads[0],
        "intermediate_size": shape.intermediate_size[0],
    }
    if stock:
        return GPTNeoXConfig(**values)
    values["head_dim"] = head_dim(config)
    if not subnet.is_uniform:
        layers = zip(shape.num_attention_heads, shape.intermediate_size, strict=True)
        values["per_layer_config"] = {
            i: {"num_attention_heads": heads, "intermediate_size": neurons} for i, (heads, neurons) in enumerate(layers)
        }
    return WhittleGPTNeoXConfig(**values)


def add_former_settings(config: GPTNeoXConfig) -> None:
    """Add the rotary settings of a stock student under the names that transformers 4 reads, where not its defaults.

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
    for name in (*_FORMER_SETTINGS, "rope_scaling"):
        vars(config).pop(name, None)
    if config.model_type == GPTNeoXConfig.model_type:
        vars(config).update(settings)  # `rope_scaling` is another name of `rope_parameters` otherwise


def oldest_transformers(config: dict[str, Any]) -> str:
    """The oldest version of transformers that reads a student with this content of `config.json`."""
    if config["model_type"] == WhittleGPTNeoXConfig.model_type:
        return OLDEST_TRANSFORMERS
    rotary = config.get("rope_parameters") or {}
    is_seen = rotary.get("rope_type", "default") == "default" and all(
        config.get(name, default) == rotary.get(parameter, default)
        for name, (parameter, default) in _FORMER_SETTINGS.items()
    )
    return "4.49" if is_seen else "5.0"  # version 4 does not know `rope_parameters`


def student_class(config: GPTNeoXConfig) -> type[GPTNeoXForCausalLM]:
    """The class of a student with this configuration."""
    return WhittleGPTNeoXForCausalLM if isinstance(config, WhittleGPTNeoXConfig) else GPTNeoXForCausalLM
