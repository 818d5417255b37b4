"""Configuration of a GPT-NeoX student whose layers may differ and whose heads need not fill the hidden size."""

import transformers

OLDEST_TRANSFORMERS = "5.15"
"""The first version of transformers with configurations that may differ by layer."""

if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, OLDEST_TRANSFORMERS.split("."))):
    raise ImportError(
        f"this model, whose layers may differ, needs transformers {OLDEST_TRANSFORMERS} or newer, got "
        f"{transformers.__version__}; install it with pip install --upgrade transformers"
    )

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers import GPTNeoXConfig  # noqa: E402

_BY_LAYER = ("num_attention_heads", "intermediate_size")


@strict
class WhittleGPTNeoXConfig(GPTNeoXConfig):
    r"""
    A `GPTNeoXConfig` with a `head_dim`, and with sizes that may differ by layer.

    Args:
        head_dim (`int`, *optional*): channels of an attention head; `hidden_size // num_attention_heads` if `None`.
            `num_attention_heads * head_dim` need not equal `hidden_size`.
        per_layer_config (`dict[int, dict[str, int]]`, *optional*): `num_attention_heads` and `intermediate_size` of
            single layers, in the schema of `transformers`.

    Example:

    ```python
    >>> WhittleGPTNeoXConfig(
    ...     hidden_size=96, num_hidden_layers=2, head_dim=32, num_attention_heads=2, intermediate_size=128,
    ...     per_layer_config={1: {"num_attention_heads": 4, "intermediate_size": 200}},
    ... )
    ```
    """

    model_type = "whittle_gpt_neox"
    # The stock plans shard heads that are all alike; nothing here is known to survive that.
    base_model_tp_plan = None  # type: ignore[assignment]
    base_model_pp_plan = None  # type: ignore[assignment]

    head_dim: int | None = None

    def __post_init__(self, **kwargs) -> None:
        for layer, values in (kwargs.get("per_layer_config") or {}).items():
            unknown = sorted(set(values) - set(_BY_LAYER))
            if unknown:
                raise ValueError(
                    f"per_layer_config of layer {layer}: only {' and '.join(_BY_LAYER)} may differ, got {unknown}"
                )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of "
                    f"num_attention_heads={self.num_attention_heads}; give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Every layer needs a head and a neuron; heads times `head_dim` may be anything."""
        for index, layer in enumerate(self.per_layer_config):
            for name in _BY_LAYER:
                value = getattr(layer, name)
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} of layer {index} must be a whole number of at least 1, got {value!r}")

    def validate_rope(self) -> None:
        """Validate the rotary settings as the stock configuration does; all layers share them."""
        super(WhittleGPTNeoXConfig, self.per_layer_config[0]).validate_rope()  # type: ignore[misc]


__all__ = ["WhittleGPTNeoXConfig"]
