"""What the configurations of all students have that no stock class can hold.

All files beside this one travel with a published student, so they import only torch, transformers, huggingface_hub and
each other.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import transformers

OLDEST_TRANSFORMERS = "5.15"
"""The first version of transformers with configurations that may differ by layer."""

if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, OLDEST_TRANSFORMERS.split("."))):
    raise ImportError(
        f"this model, whose layers may differ, needs transformers {OLDEST_TRANSFORMERS} or newer, got "
        f"{transformers.__version__}; install it with pip install --upgrade transformers"
    )

if TYPE_CHECKING:

    class Stock(transformers.PreTrainedConfig):
        head_dim: Any

else:
    Stock = object


@dataclass(kw_only=True)
class WhittleConfiguration(Stock):
    r"""
    Comes before a stock configuration among the bases of a student's, and adds sizes that the stock one does not have.

    Args:
        head_dim (`int`, *optional*): channels of an attention head; `hidden_size // num_attention_heads` if `None` and
            the stock class has no other default. `num_attention_heads * head_dim` need not equal `hidden_size`.
        rotary_head_dim (`int`, *optional*): channels of a head for which rotary frequencies are computed; `head_dim` if
            `None`.
        rotary_pairs (`list[int]`, *optional*): the rotary pairs of such a head that the student's heads have, in order;
            all if `None`.
        per_layer_config (`dict[int, dict[str, int]]`, *optional*): `num_attention_heads`, `num_key_value_heads` and
            `intermediate_size` of single layers, in the schema of `transformers`.
    """

    # The stock plans shard heads that are all alike; nothing here is known to survive that.
    base_model_tp_plan: ClassVar[Any] = None
    base_model_pp_plan: ClassVar[Any] = None
    _auto_class = "AutoConfig"

    names_by_layer: ClassVar[tuple[str, ...]] = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    """Attributes that may differ by layer, as far as the stock configuration has them."""

    rotary_head_dim: int | None = None
    rotary_pairs: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        names = self._names_by_layer()
        for layer, values in (kwargs.get("per_layer_config") or {}).items():
            unknown = sorted(set(values) - set(names))
            if unknown:
                allowed = f"{', '.join(names[:-1])} and {names[-1]}"
                raise ValueError(f"per_layer_config of layer {layer}: only {allowed} may differ, got {unknown}")
        if self.head_dim is None:
            # A stock configuration may have another name for a size; it then sets it later.
            size, heads = (kwargs.get(name, getattr(self, name)) for name in ("hidden_size", "num_attention_heads"))
            if size % heads:
                raise ValueError(f"hidden_size={size} is not a multiple of num_attention_heads={heads}; give head_dim")
            self.head_dim = size // heads
        super().__post_init__(**kwargs)

    def _names_by_layer(self) -> list[str]:
        return [name for name in self.names_by_layer if name in self.__dataclass_fields__]

    def with_all_pairs(self) -> Any:
        """A configuration of the first layer, whose heads have all channels that frequencies are computed for."""
        config: Any = copy.copy(self.per_layer_config[0])
        if self.rotary_head_dim is not None:
            config.head_dim = self.rotary_head_dim
        return config

    def validate_architecture(self) -> None:
        """Every layer needs a head and a neuron; heads times `head_dim` may be anything."""
        for index, layer in enumerate(self.per_layer_config):
            for name in self._names_by_layer():
                value = getattr(layer, name)
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} of layer {index} must be a whole number of at least 1, got {value!r}")
            heads = layer.num_attention_heads
            key_value_heads = getattr(layer, "num_key_value_heads", heads)
            if heads % key_value_heads:
                raise ValueError(
                    f"num_attention_heads of layer {index} must be a multiple of its num_key_value_heads, got {heads} "
                    f"and {key_value_heads}"
                )

    def validate_rope(self) -> None:
        """Validate the rotary settings as the stock configuration does; all layers share them."""
        super(WhittleConfiguration, self.with_all_pairs()).validate_rope()

    def validate_rotary_pairs(self) -> None:
        """The kept pairs must be there, and fill the rotated part of a head."""
        width, pairs = self.rotary_head_dim, self.rotary_pairs
        if width is None and pairs is None:
            return
        if width is None or pairs is None:
            raise ValueError(f"give both rotary_head_dim and rotary_pairs, or neither, got {width} and {pairs}")
        rotated = int(width * (self.rope_parameters or {}).get("partial_rotary_factor", 1.0))
        there = (rotated + 1) // 2
        if len(set(pairs)) < len(pairs) or not all(0 <= pair < there for pair in pairs):
            raise ValueError(f"rotary_pairs must be different numbers from 0 to {there - 1}, got {pairs}")
        if 2 * len(pairs) > self.head_dim or (rotated == width and 2 * len(pairs) < self.head_dim):
            raise ValueError(
                f"heads of head_dim={self.head_dim} channels cannot have {len(pairs)} rotary_pairs of 2 channels each"
            )
