"""Sizes that the subnets of a space may have."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..architectures.dimensions import HEAD_CHANNELS, VOCABULARY, Dimension
from ..architectures.registry import get_architecture, has_student_classes
from ..architectures.table import Architecture
from ..cost.polynomial import Polynomial
from ..errors import BinError, SubnetError
from ..kept import is_number
from ..models.token_ids import renumbered
from ..subnet import DIMENSIONS, Shape, SubnetConfig, count
from .entries import FirstTokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Frame = tuple[int, ...]
"""A size of each dimension that all layers share, in the order of `Architecture.shared`."""


@dataclass(frozen=True)
class Sizes:
    """Ranges of sizes of a super-network's subnets, and which combinations of sizes and entries belong to the space.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network, whose layers all have the same sizes.
        granularity (`str`): `"coarse"` keeps the first entries of each dimension, `"fine"` any entries.
        layer_wise (`bool`): whether layers may differ.
        stock_only (`bool`): whether a stock model must hold the students: uniform, with whole heads, and of sizes that
            its class allows.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, num_key_value_heads,
            num_key_value_groups, head_dim (`range`): allowed sizes, `None` where the architecture lacks the dimension.
        vocab_sizes (`tuple[int, ...]`, *optional*): allowed sizes of the vocabulary; the whole one by default.
        token_order (`tuple[int, ...]`, *optional*): token ids, of which the first are kept; ascending by default.

    Raises:
        SubnetError: if a setting or a range does not fit the super-network.
    """

    config: "PreTrainedConfig" = field(repr=False)
    granularity: Literal["coarse", "fine"]
    layer_wise: bool
    stock_only: bool
    hidden_size: range
    num_hidden_layers: range
    num_attention_heads: range | None = None
    intermediate_size: range | None = None
    num_key_value_heads: range | None = None
    num_key_value_groups: range | None = None
    head_dim: range | None = None
    vocab_sizes: tuple[int, ...] | None = None
    token_order: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.granularity not in ("coarse", "fine"):
            raise SubnetError(f"granularity must be 'coarse' or 'fine', got {self.granularity!r}")
        if not self.full.is_uniform:
            raise SubnetError(
                "a search space needs a super-network whose layers are all alike, got one whose layers differ; search "
                "the model that it was extracted from"
            )
        if self.stock_only and self.layer_wise:
            raise SubnetError("a stock model has layers that are all alike: stock_only=True needs layer_wise=False")
        if not self.stock_only and not has_student_classes(self.architecture):
            raise SubnetError(
                f"{self.config.model_type!r} is a registered architecture, whose students must be such that its stock "
                "class holds them: make the space with stock_only=True"
            )
        for dimension in DIMENSIONS:
            if dimension is not VOCABULARY:
                self._check_range(dimension)
        self._check_vocabulary()
        if self.stock_only and (HEAD_CHANNELS in self.named or getattr(self.config, "rotary_pairs", None) is not None):
            raise SubnetError(
                "a stock model has heads of all channels: stock_only=True needs a super-network with whole heads and "
                f"no range of head_dim, got {self.head_dim}"
            )

    def _check_range(self, dimension: Dimension) -> None:
        name, sizes = dimension.name, getattr(self, dimension.name)
        if dimension not in self.architecture.dimensions:
            if sizes is not None:
                known = ", ".join(each.name for each in self.architecture.dimensions)
                raise SubnetError(f"{name}: a {self.config.model_type} has no such dimension, only {known}")
            return
        most = self.full.size(dimension)
        if not isinstance(sizes, range):
            raise SubnetError(
                f"{name}: sizes must be a range such as range({dimension.unit}, {most + 1}, {dimension.unit}), got "
                f"{sizes!r}"
            )
        if not sizes or sizes[0] < 1 or sizes[-1] > most or sizes.step < 0:
            raise SubnetError(f"{name}: sizes must be an ascending range within 1 to {most}, got {sizes}")
        if any(size % dimension.unit and size != most for size in sizes):
            raise SubnetError(
                f"{name}: {dimension.label} are kept in groups of {dimension.unit}, so sizes must be multiples of "
                f"{dimension.unit}, got {sizes}"
            )

    def _check_vocabulary(self) -> None:
        """Check sizes and order of tokens, and that every size keeps the special tokens of the model."""
        sizes, order, most = self.sizes(VOCABULARY), self.token_order, self.config.vocab_size
        numbers = all(map(is_number, sizes)) and all(map(is_number, order or ()))
        if not numbers or not sizes or sorted({*sizes}) != list(sizes) or not 1 <= sizes[0] <= sizes[-1] <= most:
            raise SubnetError(
                f"vocab_sizes: sizes must be whole numbers within 1 to {most} that ascend, got {list(sizes)}"
            )
        needed = max((size for size in sizes if size < most), default=0)
        if order is not None and (
            len({*order}) < len(order) or not needed <= len(order) <= most or not 0 <= min(order) <= max(order) < most
        ):
            raise SubnetError(
                f"token_order: expected at least {needed} ids of tokens, the largest size of a part of the vocabulary, "
                f"each one once and below {most}, got {len(order)} ids"
            )
        for size in sizes:
            if size < most:
                renumbered(self.config.to_dict(), self.tokens.choose(None, size), most)

    @cached_property
    def tokens(self) -> FirstTokens:
        """The way to choose tokens."""
        return FirstTokens(self.config.vocab_size, self.token_order)

    @cached_property
    def architecture(self) -> Architecture:
        return get_architecture(self.config)

    @cached_property
    def full(self) -> Shape:
        """Sizes of the super-network."""
        return Shape.from_config(self.config)

    @cached_property
    def named(self) -> tuple[Dimension, ...]:
        """The dimensions that subnets of this space name: all but optional ones that are always whole."""
        dimensions = (*self.architecture.dimensions, VOCABULARY)
        return tuple(d for d in dimensions if not d.is_optional or self.sizes(d)[0] < self.full.size(d))

    def sizes(self, dimension: Dimension) -> Any:
        """Allowed sizes of a dimension that the architecture has, ascending: a range, or a tuple for the vocabulary."""
        if dimension is VOCABULARY:
            return (self.config.vocab_size,) if self.vocab_sizes is None else self.vocab_sizes
        return getattr(self, dimension.name)

    @property
    def frames(self) -> Iterator[Frame]:
        """Allowed sizes of the shared dimensions, the last one changing fastest."""
        return itertools.product(*map(self.sizes, self.architecture.shared))

    def to_dict(self) -> dict[str, Any]:
        """Choices that define the space, for the record of a search."""
        chosen = {name: getattr(self, name) for name in ("granularity", "layer_wise", "stock_only")}
        ranges = {
            dimension.name: getattr(self, dimension.name) for dimension in self.named if dimension is not VOCABULARY
        }
        sizes = {name: [sizes.start, sizes[-1], sizes.step] for name, sizes in ranges.items()}
        if VOCABULARY in self.named:
            sizes["vocab_sizes"] = list(self.sizes(VOCABULARY))
            order = None if self.token_order is None else repr(self.token_order).encode()
            chosen["token_order"] = order and hashlib.sha256(order).hexdigest()[:16]
        return {**chosen, **sizes, "supernet": {dimension.name: self.full.size(dimension) for dimension in self.named}}

    def contains(self, subnet: SubnetConfig) -> bool:
        """Whether a subnet belongs to the space, in any bin."""
        subnet.validate(self.full)
        shape = subnet.shape.filled(self.full)
        if shape.num_hidden_layers not in self.num_hidden_layers:
            return False
        for dimension in shape.dimensions:
            sizes = getattr(shape, dimension.name)
            if any(size not in self.sizes(dimension) for size in (sizes if dimension.per_layer else (sizes,))):
                return False
        for dimension in subnet.dimensions:
            kept = subnet.kept(dimension)
            if dimension is VOCABULARY:
                if kept != self.tokens.choose(None, count(kept)):
                    return False
                continue
            if dimension.per_layer and not self.layer_wise and len({*kept}) > 1:
                return False
            if self.granularity == "coarse" and not all(
                isinstance(entry, int) for entry in (kept if dimension.per_layer else (kept,))
            ):
                return False
        return not self.stock_only or self._stock_problem(shape.of_layer(0)) is None

    def allowed_layers(self, frame: Frame) -> np.ndarray:
        """Sizes of all dimensions of a layer but the last, for layers that are alike: `(number, dimensions - 1)`.

        With `stock_only`, only those that a stock model holds with these shared sizes.
        """
        if not self.stock_only:
            return self.all_layers
        if frame not in self._stock_layers:
            possible = (self._named_sizes(frame, sizes) for sizes in self.all_layers.tolist())
            self._stock_layers[frame] = self.all_layers[[self._stock_problem(sizes) is None for sizes in possible]]
        return self._stock_layers[frame]

    def sizes_for(self, dimension: Dimension, frame: Frame) -> Sequence[int]:
        """Allowed sizes of a dimension of layers with these shared sizes."""
        if not self.stock_only or dimension not in self._all_but_last:
            return self.sizes(dimension)
        return sorted({*self.allowed_layers(frame)[:, self._all_but_last.index(dimension)].tolist()})

    def reachable_costs(self, cost: Polynomial) -> tuple[float, float]:
        """Least and greatest cost of a subnet of this space.

        Raises:
            BinError: if the space has no subnet at all.
        """
        corners = [self._corners(cost, frame) for frame in self.frames if len(self.allowed_layers(frame))]
        if not corners:
            *_, greatest = self.frames
            problem = self._stock_problem(self._named_sizes(greatest, [self.sizes(d)[-1] for d in self._all_but_last]))
            ranges = [f"{d.name}={self.sizes(d)}" for d in (*self.architecture.shared, *self._all_but_last)]
            raise BinError(
                f"no subnet of this space fits a stock model; of the greatest one, {problem}; change one of the ranges "
                f"{', '.join(ranges)}"
            )
        return min(low for low, _ in corners), max(high for _, high in corners)

    def _corners(self, cost: Polynomial, frame: Frame) -> tuple[float, float]:
        """Least and greatest cost of a subnet with these shared sizes."""
        prices, last = cost.prices(frame), self.architecture.per_layer[-1]
        of_layers = [
            prices.layer + sum(size * prices.of(d) for size, d in zip(sizes, self._all_but_last, strict=True))
            for sizes in self.allowed_layers(frame).tolist()
        ]
        least, most = (
            prices.model + self.num_hidden_layers[end] * (of_layer + self.sizes(last)[end] * prices.of(last))
            for end, of_layer in ((0, min(of_layers)), (-1, max(of_layers)))
        )
        return least, most

    @cached_property
    def _all_but_last(self) -> tuple[Dimension, ...]:
        """The dimensions of a layer but the last."""
        return self.architecture.per_layer[:-1]

    @cached_property
    def all_layers(self) -> np.ndarray:
        """Sizes of all dimensions of a layer but the last: `(number, dimensions - 1)`."""
        return np.array(list(itertools.product(*map(self.sizes, self._all_but_last))))

    @cached_property
    def _stock_layers(self) -> dict[Frame, np.ndarray]:
        return {}

    def _stock_problem(self, sizes: Mapping[Dimension, int]) -> str | None:
        """Why no stock model has these sizes in all layers, and the super-network's where they are not given."""
        return self.architecture.stock_problem(self.config, {**self.architecture.read_sizes(self.config), **sizes})

    def _named_sizes(self, frame: Frame, sizes: Sequence[int]) -> dict[Dimension, int]:
        """Shared sizes, and those of all dimensions of a layer but the last, by their dimensions."""
        return dict(zip((*self.architecture.shared, *self._all_but_last), (*frame, *sizes), strict=True))
