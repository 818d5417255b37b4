"""Sizes that the subnets of a space may have."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..cost.polynomial import Polynomial
from ..errors import BinError, SubnetError
from ..models.architecture import head_dim
from ..subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class Sizes:
    """Ranges of sizes of a super-network's subnets, and which combinations of sizes and entries belong to the space.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network, whose layers all have the same sizes.
        granularity (`str`): `"coarse"` keeps the first entries of each dimension, `"fine"` any entries.
        layer_wise (`bool`): whether layers may keep different heads and neurons.
        stock_only (`bool`): whether students must fit a stock model: uniform, with heads that fill the hidden size.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`range`): allowed sizes.

    Raises:
        SubnetError: if a setting or a range does not fit the super-network.
    """

    config: "PreTrainedConfig" = field(repr=False)
    granularity: Literal["coarse", "fine"]
    layer_wise: bool
    stock_only: bool
    hidden_size: range
    num_hidden_layers: range
    num_attention_heads: range
    intermediate_size: range

    def __post_init__(self) -> None:
        if self.granularity not in ("coarse", "fine"):
            raise SubnetError(f"granularity must be 'coarse' or 'fine', got {self.granularity!r}")
        shape = Shape.from_config(self.config)
        if len(set(shape.num_attention_heads)) > 1 or len(set(shape.intermediate_size)) > 1:
            raise SubnetError(
                "a search space needs a super-network whose layers are all alike, got one whose layers differ; search "
                "the model that it was extracted from"
            )
        if self.stock_only and self.layer_wise:
            raise SubnetError("a stock model has layers that are all alike: stock_only=True needs layer_wise=False")
        for name in _SIZES:
            sizes, most = getattr(self, name), getattr(self.config, name)
            if not sizes or sizes[0] < 1 or sizes[-1] > most or sizes.step < 0:
                raise SubnetError(f"{name}: sizes must be an ascending range within 1 to {most}, got {sizes}")

    def to_dict(self) -> dict[str, Any]:
        """Choices that define the space, for the record of a search."""
        chosen = {name: getattr(self, name) for name in ("granularity", "layer_wise", "stock_only")}
        ranges = {name: getattr(self, name) for name in _SIZES}
        sizes = {name: [sizes.start, sizes[-1], sizes.step] for name, sizes in ranges.items()}
        return {**chosen, **sizes, "supernet": {name: getattr(self.config, name) for name in _SIZES}}

    def contains(self, subnet: SubnetConfig) -> bool:
        """Whether a subnet belongs to the space, in any bin."""
        subnet.validate(self.config)
        shape = subnet.shape
        kept = (subnet.hidden_size, subnet.num_hidden_layers, *subnet.num_attention_heads, *subnet.intermediate_size)
        return (
            shape.hidden_size in self.hidden_size
            and shape.num_hidden_layers in self.num_hidden_layers
            and all(heads in self.num_attention_heads for heads in shape.num_attention_heads)
            and all(neurons in self.intermediate_size for neurons in shape.intermediate_size)
            and (self.granularity == "fine" or all(isinstance(entry, int) for entry in kept))
            and (self.layer_wise or len({*subnet.num_attention_heads}) == len({*subnet.intermediate_size}) == 1)
            and (not self.stock_only or shape.num_attention_heads[0] * head_dim(self.config) == shape.hidden_size)
        )

    def heads_for(self, channels: int) -> range:
        """Allowed numbers of heads of a layer; with `stock_only`, only those that fill the channels."""
        if not self.stock_only:
            return self.num_attention_heads
        heads, rest = divmod(channels, head_dim(self.config))
        return range(heads, heads + 1) if not rest and heads in self.num_attention_heads else range(0)

    def reachable_costs(self, cost: Polynomial) -> tuple[float, float]:
        """Least and greatest cost of a subnet of this space.

        Raises:
            BinError: if the space has no subnet at all.
        """
        possible = [channels for channels in self.hidden_size if self.heads_for(channels)]
        if not possible:
            raise BinError(
                f"no subnet of this space fits a stock model: none of the hidden sizes {self.hidden_size} is filled "
                f"by {self.num_attention_heads} heads of {head_dim(self.config)} channels; change one of these ranges"
            )

        def corner(end: int) -> float:
            channels, layers = possible[end], self.num_hidden_layers[end]
            heads, neurons = self.heads_for(channels)[end], self.intermediate_size[end]
            return cost(Shape(channels, (heads,) * layers, (neurons,) * layers))

        return corner(0), corner(-1)
