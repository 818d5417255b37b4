"""Configuration of a Qwen2 student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config


@strict
class WhittleQwen2Config(WhittleConfiguration, Qwen2Config):
    """A `Qwen2Config` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_qwen2"
    head_dim: int | None = None


__all__ = ["WhittleQwen2Config"]
