"""Students of a recipe before its search: the most that any of them costs in the bin."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from ..architectures.dimensions import CHANNELS, LAYERS, VOCABULARY
from ..cost.bins import Bin
from ..cost.counts import flops_per_token, num_parameters
from ..cost.polynomial import Polynomial, flops_polynomial, parameter_polynomial
from ..models.student import student_config
from ..space.reach import Greatest, Reach
from ..space.search_space import SearchSpace
from ..subnet import Kept, SubnetConfig

_FRAMES = 8
"""Groups of the shared sizes for which a bound is computed."""


@dataclass(frozen=True)
class Students:
    """All subnets of a space in a bin, or one given subnet.

    Args:
        space (`SearchSpace`): the space.
        bin (`Bin`): the bin.
        block_size (`int`): tokens of a block.
        subnet (`SubnetConfig`, *optional*): the student, where it is known.
    """

    space: SearchSpace
    bin: Bin
    block_size: int
    subnet: SubnetConfig | None = None

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the super-network."""
        return self.space.config

    @cached_property
    def reach(self) -> Reach:
        """Sizes that lie in the bin."""
        return Reach(self.space, self.bin)

    @cached_property
    def costliest(self) -> SubnetConfig:
        """The student, or a subnet of the bin with the most FLOPs, its entries spread evenly over the layers."""
        if self.subnet is not None:
            return self.subnet
        return self._spread(self.reach.greatest(flops_polynomial(self.config, self.block_size)))

    @cached_property
    def student_config(self) -> PreTrainedConfig:
        """Configuration of the costliest student."""
        return student_config(self.config, self.costliest)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the student, at most."""
        if self.subnet is not None:
            return num_parameters(self.config, self.subnet)
        return int(self.reach.greatest(parameter_polynomial(self.config)).cost)

    @cached_property
    def kept_tokens(self) -> Kept | None:
        """Tokens that the student keeps, or else those of the smallest vocabulary of the bin, with the longest text."""
        if self.subnet is not None:
            return self.subnet.vocab_size
        place = self.space.architecture.shared.index(VOCABULARY)
        return self.space.tokens.choose(None, min(frame[place] for frame, _ in self.reach.pairs))

    def flops(self, length: int) -> int:
        """FLOPs of a forward pass of the student, per token, at most."""
        if self.subnet is not None:
            return flops_per_token(self.config, self.subnet, sequence_length=length)
        return self.searched_flops(length)

    def searched_flops(self, length: int) -> int:
        """FLOPs of a forward pass of any subnet of the bin, per token, at most."""
        return int(self.reach.greatest(flops_polynomial(self.config, length)).cost)

    @cached_property
    def is_known(self) -> bool:
        """Whether the costs of the student are known: it is given, or all of the bin cost the same."""
        if self.subnet is not None:
            return True
        polynomials = (parameter_polynomial(self.config), flops_polynomial(self.config, self.block_size))
        return all(self._least(each) == self.reach.greatest(each).cost for each in polynomials)

    def _least(self, cost: Polynomial) -> float:
        return -self.reach.greatest(cost * -1).cost

    def most(self, cost: Callable[[SubnetConfig], int]) -> int:
        """Upper bound of a cost that grows with every size, over all students.

        Subnets are grouped by the number of layers and by some ranges of the shared sizes. Of each group, one is taken
        that has the most of everything: shared sizes, and totals of entries, which are gathered in as few layers as
        can be, since costs grow faster than sizes. It keeps the last layers, as first ones cost the most when they are
        left out.
        """
        if self.subnet is not None:
            return cost(self.subnet)
        return max(cost(subnet) for subnet in self._bounding)

    @cached_property
    def _bounding(self) -> list[SubnetConfig]:
        by_layers: dict[int, list[Any]] = {}
        for frame, layers in self.reach.pairs:
            by_layers.setdefault(layers, []).append(frame)
        found = []
        for layers, frames in by_layers.items():
            whole = [frame for frame in frames if frame[0] == self.config.hidden_size]
            narrow = sorted(frame for frame in frames if frame[0] < self.config.hidden_size)
            size = max(1, math.ceil(len(narrow) / _FRAMES))
            groups = [narrow[start : start + size] for start in range(0, len(narrow), size)]
            found += [self._bound(group, layers) for group in (whole, *groups) if group]
        return found

    def _bound(self, frames: list[Any], layers: int) -> SubnetConfig:
        per_layer = self.space.architecture.per_layer
        totals = [self._totals(frame, layers) for frame in frames]
        most = [max(each[i] for each in totals) for i in range(len(per_layer))]
        frame = tuple(max(frame[i] for frame in frames) for i in range(len(frames[0])))
        return self._subnet(Greatest(0, frame, layers, tuple(most)), self._gathered)

    def _totals(self, frame: Any, layers: int) -> list[int]:
        """Most entries of each dimension that layers have of their own, over all layers."""
        *enumerated, _ = self.space.architecture.per_layer
        found = self.reach.totals(frame, layers)
        _, highest = self.reach.last_totals(frame, np.full(len(found), layers), found.T)
        return [*(int(found[:, i].max()) for i in range(len(enumerated))), int(highest.max())]

    def _spread(self, sizes: Greatest) -> SubnetConfig:
        return self._subnet(sizes, self._evenly)

    def _subnet(self, sizes: Greatest, spread: Callable[[range, int, int], list[int]]) -> SubnetConfig:
        """A subnet of these sizes, which keeps the last layers."""
        space, last = self.space, self.config.num_hidden_layers
        kept: dict[str, Any] = {LAYERS.name: list(range(last - sizes.layers, last))}
        for dimension, size in zip(space.architecture.shared, sizes.frame, strict=True):
            if dimension is VOCABULARY:
                kept[dimension.name] = space.tokens.choose(None, size)
            elif dimension is CHANNELS or dimension in space.named:
                kept[dimension.name] = size
        for dimension, total in zip(space.architecture.per_layer, sizes.totals, strict=True):
            kept[dimension.name] = spread(space.sizes(dimension), total, sizes.layers)
        return SubnetConfig(**kept)

    @staticmethod
    def _evenly(sizes: range, total: int, layers: int) -> list[int]:
        steps = (total - sizes[0] * layers) // sizes.step
        each, rest = divmod(steps, layers)
        return [sizes[0] + sizes.step * (each + (layer < rest)) for layer in range(layers)]

    @staticmethod
    def _gathered(sizes: range, total: int, layers: int) -> list[int]:
        left, found = total - sizes[0] * layers, []
        for _ in range(layers):
            more = min(left, sizes[-1] - sizes[0])
            found.append(sizes[0] + more)
            left -= more
        return found


class GivenStudent(Students):
    """A student that a recipe gives: there is no space to search, and all of it is kept.

    Args:
        config (`PreTrainedConfig`): its configuration.
        block_size (`int`): tokens of a block.
    """

    def __init__(self, config: PreTrainedConfig, block_size: int):
        none: Any = None
        super().__init__(none, none, block_size, SubnetConfig.full(config))
        object.__setattr__(self, "_given", config)

    @property
    def config(self) -> PreTrainedConfig:
        """Its own configuration."""
        given: PreTrainedConfig = self.__dict__["_given"]
        return given

    @property
    def student_config(self) -> PreTrainedConfig:
        """Its own configuration."""
        return self.config
