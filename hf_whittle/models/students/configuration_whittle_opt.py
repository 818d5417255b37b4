"""Configuration of an OPT student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import OPTConfig


@strict
class WhittleOPTConfig(WhittleConfiguration, OPTConfig):
    """An `OPTConfig` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_opt"
    names_by_layer = ("num_attention_heads", "ffn_dim")

    head_dim: int | None = None


__all__ = ["WhittleOPTConfig"]
