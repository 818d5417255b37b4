"""Configuration of a Mistral student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import MistralConfig


@strict
class WhittleMistralConfig(WhittleConfiguration, MistralConfig):
    """A `MistralConfig` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_mistral"


__all__ = ["WhittleMistralConfig"]
