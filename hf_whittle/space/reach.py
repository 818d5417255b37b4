"""Sizes of a search space that lie in a bin, found by arithmetic.

The cost of a subnet is a polynomial of its sizes: for given channels and layers it is linear in the total number of
heads and in the total number of neurons over the layers.
"""

from dataclasses import astuple
from functools import cached_property
from typing import Any

import numpy as np

from ..cost.bins import Bin
from ..errors import BinError
from .sizes import Sizes


class Reach:
    """Sizes of a space's subnets that lie in a bin."""

    def __init__(self, space: Sizes, bin: Bin):
        self.space, self._bin = space, bin
        self._cost = bin.cost(space.config)
        self._head_totals: dict[tuple[int, int], list[int]] = {}
        if all(isinstance(coefficient, int) for coefficient in astuple(self._cost)):
            self._low: float = int(np.ceil(min(bin.low, 1e18)))
            self._high: float = int(np.floor(min(bin.high, 1e18)))
        else:  # a measured cost: move the ends inwards by more than the rounding of a sum
            self._low, self._high = min(bin.low, 1e18) * (1 + 1e-9), min(bin.high, 1e18) * (1 - 1e-9)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of numbers of channels and layers for which some subnet lies in the bin.

        Raises:
            BinError: if there is none.
        """
        space = self.space
        pairs = [(c, n) for c in space.hidden_size for n in space.num_hidden_layers if self.head_totals(c, n)]
        if not pairs:
            low, high = space.reachable_costs(self._cost)
            raise BinError(
                f"no subnet of this space lies in the bin {self._bin.low:,.10g} to {self._bin.high:,.10g}; its subnets "
                f"have {low:,.10g} to {high:,.10g}: choose a bin within that range, or a wider one"
            )
        return pairs

    def head_totals(self, channels: int, layers: int) -> list[int]:
        """Ascending totals of heads over the layers for which some total of neurons lies in the bin."""
        if (channels, layers) not in self._head_totals:
            sizes, found = self.space.heads_for(channels), []
            if sizes:
                totals = np.arange(sizes[0] * layers, sizes[-1] * layers + 1, sizes.step * self.unit(layers))
                low, high = self.neuron_totals(channels, layers, totals)
                found = totals[low <= high].tolist()
            self._head_totals[channels, layers] = found
        return self._head_totals[channels, layers]

    def neuron_totals(self, channels: int, layers: int, heads: Any) -> tuple[Any, Any]:
        """Least and greatest total of neurons over the layers that lies in the bin, for a total of heads.

        `heads` may be a number or an array. Where no total lies in the bin, the least exceeds the greatest.
        """
        cost, sizes = self._cost, self.space.intermediate_size
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
        """Number of layers that change together: all in a uniform space, else 1."""
        return 1 if self.space.layer_wise else layers
