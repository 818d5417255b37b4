"""Configuration of a Gemma 3 student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import Gemma3TextConfig


@strict
class WhittleGemma3Config(WhittleConfiguration, Gemma3TextConfig):
    """A `Gemma3TextConfig` whose heads and layers may be of any size; see `WhittleConfiguration`.

    Args:
        embed_scale (`float`, *optional*): factor of the embeddings; the root of `hidden_size` if `None`.
    """

    model_type = "whittle_gemma3_text"
    embed_scale: float | None = None


__all__ = ["WhittleGemma3Config"]
