"""Configuration of a GPT-NeoX student whose layers may differ and whose heads need not fill the hidden size."""

from .whittle_configuration import WhittleConfiguration  # isort: skip (the first import tells which versions are too old)

from huggingface_hub.dataclasses import strict
from transformers import GPTNeoXConfig


@strict
class WhittleGPTNeoXConfig(WhittleConfiguration, GPTNeoXConfig):
    r"""
    A `GPTNeoXConfig` with a `head_dim`, and with sizes that may differ by layer; see `WhittleConfiguration`.

    Example:

    ```python
    >>> WhittleGPTNeoXConfig(
    ...     hidden_size=96, num_hidden_layers=2, head_dim=32, num_attention_heads=2, intermediate_size=128,
    ...     per_layer_config={1: {"num_attention_heads": 4, "intermediate_size": 200}},
    ... )
    ```
    """

    model_type = "whittle_gpt_neox"
    head_dim: int | None = None


__all__ = ["WhittleGPTNeoXConfig"]
