"""Dimensions of a model: what a subnet can keep a part of."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dimension:
    """A dimension of a model.

    Args:
        name (`str`): its name in `SubnetConfig`, `Shape` and search spaces.
        label (`str`): its entries in words, in the plural.
        per_layer (`bool`, *optional*, defaults to `False`): whether each layer keeps entries of its own.
        is_optional (`bool`, *optional*, defaults to `False`): whether a subnet that does not name it keeps it whole.
        unit (`int`, *optional*, defaults to 1): number of entries that are kept or left out together.
        is_sliced (`bool`, *optional*, defaults to `True`): whether a subnet can keep a part of it.
        is_looked_up (`bool`, *optional*, defaults to `False`): whether its entries are rows that are looked up.
    """

    name: str
    label: str
    per_layer: bool = False
    is_optional: bool = False
    unit: int = 1
    is_sliced: bool = True
    is_looked_up: bool = False

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Callable[[str], "Dimension"], tuple[str]]:
        """A copy, pickled or not, is the dimension itself."""
        return _dimension, (self.name,)


def _dimension(name: str) -> Dimension:
    return next(value for value in globals().values() if isinstance(value, Dimension) and value.name == name)


CHANNELS = Dimension("hidden_size", "channels")
"""Channels of the residual stream."""
LAYERS = Dimension("num_hidden_layers", "layers")
HEADS = Dimension("num_attention_heads", "heads", per_layer=True)
"""Attention heads, each with keys and values of its own."""
KEY_VALUE_HEADS = Dimension("num_key_value_heads", "key-value heads", per_layer=True)
"""Key-value heads, each with all queries that read it."""
QUERIES = Dimension("num_key_value_groups", "queries", is_optional=True)
"""Queries of a key-value head, the same of every one."""
HEAD_CHANNELS = Dimension("head_dim", "head channels", is_optional=True, unit=2)
"""Channels of a head, the same of every one, in the order of rotary pairs.

Entries `2 * i` and `2 * i + 1` are the two channels of the rotary pair `i`; channels that are not rotated come last.
"""
NEURONS = Dimension("intermediate_size", "neurons", per_layer=True)
"""Neurons of an MLP."""
VOCABULARY = Dimension("vocab_size", "tokens", is_optional=True, is_looked_up=True)
"""Entries of the vocabulary, which embeddings and the output matrix share."""
POSITIONS = Dimension("max_position_embeddings", "positions", is_sliced=False, is_looked_up=True)
"""Rows of a learned position embedding."""
