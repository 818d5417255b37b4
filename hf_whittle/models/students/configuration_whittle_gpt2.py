"""Configuration of a GPT-2 student whose layers may differ."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config


@strict
class WhittleGPT2Config(WhittleConfiguration, GPT2Config):
    """A `GPT2Config` whose heads and layers may be of any size; see `WhittleConfiguration`."""

    model_type = "whittle_gpt2"
    names_by_layer = ("n_head", "n_inner")

    head_dim: int | None = None

    def __post_init__(self, **kwargs):
        if self.n_inner is None:
            self.n_inner = 4 * kwargs.get("hidden_size", self.n_embd)
        super().__post_init__(**kwargs)


__all__ = ["WhittleGPT2Config"]
