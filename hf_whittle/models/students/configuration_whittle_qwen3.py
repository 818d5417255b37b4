"""Configuration of a Qwen3 student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config


@strict
class WhittleQwen3Config(WhittleConfiguration, Qwen3Config):
    """A `Qwen3Config` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_qwen3"


__all__ = ["WhittleQwen3Config"]
