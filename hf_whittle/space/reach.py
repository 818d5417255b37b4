"""Which sizes of a search space lie in a bin, by arithmetic.

The cost of a subnet is a polynomial of its sizes: for given channels and layers it is linear in the total number of
heads and in the total number of neurons over the layers.
"""

from dataclasses import astuple
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cost.bins import Bin
from ..cost.polynomial import Polynomial
from ..errors import BinError
from ..models.architecture import head_dim
from ..subnet import Shape

if TYPE_CHECKING:
    from .search_space import SearchSpace


class Reach:
    """The sizes of a space's subnets that lie in a bin."""

    def __init__(self, space: "SearchSpace", bin: Bin):
        self._space, self._bin = space, bin
        self._cost = bin.cost(space.config)
        self._head_totals: dict[tuple[int, int], list[int]] = {}
        if all(isinstance(coefficient, int) for coefficient in astuple(self._cost)):
            self._low: float = int(np.ceil(min(bin.low, 1e18)))
            self._high: float = int(np.floor(min(bin.high, 1e18)))
        else:  # a measured cost: move the ends inwards by more than rounding can put a sum outside
            self._low, self._high = min(bin.low, 1e18) * (1 + 1e-9), min(bin.high, 1e18) * (1 - 1e-9)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Numbers of channels and layers for which some subnet lies in the bin.

        Raises:
            BinError: if there is none.
        """
        space = self._space
        pairs = [(c, n) for c in space.hidden_size for n in space.num_hidden_layers if self.head_totals(c, n)]
        if not pairs:
            low, high = reachable_costs(space, self._cost)
            raise BinError(
                f"no subnet of this space lies in the bin {self._bin.low:,.10g} to {self._bin.high:,.10g}; its subnets "
                f"have {low:,.10g} to {high:,.10g}: choose a bin within that range, or a wider one"
            )
        return pairs

    def head_totals(self, channels: int, layers: int) -> list[int]:
        """Totals of heads over the layers for which some total of neurons lies in the bin, ascending."""
        if (channels, layers) not in self._head_totals:
            sizes, found = heads_for(self._space, channels), []
            if sizes:
                totals = np.arange(sizes[0] * layers, sizes[-1] * layers + 1, sizes.step * self.unit(layers))
                low, high = self.neuron_totals(channels, layers, totals)
                found = totals[low <= high].tolist()
            self._head_totals[channels, layers] = found
        return self._head_totals[channels, layers]

    def neuron_totals(self, channels: int, layers: int, heads: Any) -> tuple[Any, Any]:
        """Least and greatest total of neurons in the bin for a total of heads; the least exceeds it if there is none.

        `heads` may be a number or an array.
        """
        cost, sizes = self._cost, self._space.intermediate_size
        fewest, step = sizes[0] * layers, sizes.step * self.unit(layers)
        spent = cost.base(channels, layers) + heads * cost.per_head(channels) + fewest * cost.per_neuron(channels)
        price = step * cost.per_neuron(channels)
        steps = (sizes[-1] - sizes[0]) * layers // step
        if price:
            low = np.maximum(0, -np.floor_divide(spent - self._low, price))
            high = np.minimum(steps, np.floor_divide(self._high - spent, price))
        else:  # neurons are free
            low, high = 0 * spent, np.where((self._low <= spent) & (spent <= self._high), steps, -1)
        low, high = fewest + low * step, fewest + high * step
        return (int(low), int(high)) if np.ndim(heads) == 0 else (low, high)

    def unit(self, layers: int) -> int:
        """Layers that change together: all of them in a uniform space."""
        return 1 if self._space.layer_wise else layers


def reachable_costs(space: "SearchSpace", cost: Polynomial) -> tuple[float, float]:
    """Least and greatest cost of a subnet of a space.

    Raises:
        BinError: if the space has no subnet at all.
    """
    possible = [channels for channels in space.hidden_size if heads_for(space, channels)]
    if not possible:
        raise BinError(
            f"no subnet of this space fits a stock model: none of the hidden sizes {space.hidden_size} is filled by "
            f"{space.num_attention_heads} heads of {head_dim(space.config)} channels; change one of these ranges"
        )

    def corner(end: int) -> float:
        channels, layers = possible[end], space.num_hidden_layers[end]
        heads, neurons = heads_for(space, channels)[end], space.intermediate_size[end]
        return cost(Shape(channels, (heads,) * layers, (neurons,) * layers))

    return corner(0), corner(-1)


def heads_for(space: "SearchSpace", channels: int) -> range:
    """Numbers of heads a layer may have: any of the range, or with `stock_only` those that fill the channels."""
    if not space.stock_only:
        return space.num_attention_heads
    heads, rest = divmod(channels, head_dim(space.config))
    return range(heads, heads + 1) if not rest and heads in space.num_attention_heads else range(0)
