"""Configuration of a Cohere student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import CohereConfig


@strict
class WhittleCohereConfig(WhittleConfiguration, CohereConfig):
    """A `CohereConfig` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_cohere"
    head_dim: int | None = None


__all__ = ["WhittleCohereConfig"]
