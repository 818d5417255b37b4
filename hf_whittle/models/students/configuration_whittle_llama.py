"""Configuration of a Llama student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


@strict
class WhittleLlamaConfig(WhittleConfiguration, LlamaConfig):
    """A `LlamaConfig` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_llama"


__all__ = ["WhittleLlamaConfig"]
