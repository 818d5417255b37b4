"""Sizes of a search space that lie in a bin, found by arithmetic.

The cost of a subnet is a polynomial of its sizes: where the shared sizes and the number of layers are given, it is
linear in the total over the layers of each dimension that layers have of their own. Totals of all of these but the last
are enumerated; the totals of the last one follow.
"""

import itertools
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..cost.bins import Bin
from ..cost.polynomial import Polynomial
from ..errors import BinError
from .sizes import Frame, Sizes


class Greatest(NamedTuple):
    """Sizes of the subnet of a bin that has the most of some cost.

    Args:
        cost (`float`): this cost.
        frame (`tuple[int, ...]`): shared sizes, in the order of `Architecture.shared`.
        layers (`int`): number of layers.
        totals (`tuple[int, ...]`): totals over the layers, in the order of `Architecture.per_layer`.
    """

    cost: float
    frame: Frame
    layers: int
    totals: tuple[int, ...]


class Reach:
    """Sizes of a space's subnets that lie in a bin."""

    def __init__(self, space: Sizes, bin: Bin):
        self.space, self._bin = space, bin
        self._cost = bin.cost(space.config)
        self._totals: dict[Frame, dict[int, np.ndarray]] = {}
        *self._enumerated, self._last = space.architecture.per_layer
        if self._cost.is_exact:
            self._low: float = int(np.ceil(min(bin.low, 1e18)))
            self._high: float = int(np.floor(min(bin.high, 1e18)))
        else:  # a measured cost: move the ends inwards by more than the rounding of a sum
            self._low, self._high = min(bin.low, 1e18) * (1 + 1e-9), min(bin.high, 1e18) * (1 - 1e-9)

    @cached_property
    def pairs(self) -> list[tuple[Frame, int]]:
        """Pairs of shared sizes and a number of layers for which some subnet lies in the bin.

        Raises:
            BinError: if there is none.
        """
        space = self.space
        every = itertools.product(space.frames, space.num_hidden_layers)
        pairs = [(frame, layers) for frame, layers in every if len(self.totals(frame, layers))]
        if not pairs:
            low, high = space.reachable_costs(self._cost)
            raise BinError(
                f"no subnet of this space lies in the bin {self._bin.low:,.10g} to {self._bin.high:,.10g}; its subnets "
                f"have {low:,.10g} to {high:,.10g}: choose a bin within that range, or a wider one"
            )
        return pairs

    @cached_property
    def _pairs(self) -> frozenset[tuple[Frame, int]]:
        return frozenset(self.pairs)

    def holds(self, frame: Frame, layers: int) -> bool:
        """Whether some subnet with these shared sizes and number of layers lies in the bin."""
        return (frame, layers) in self._pairs

    def totals(self, frame: Frame, layers: int) -> np.ndarray:
        """Totals over the layers of all dimensions but the last for which some total of the last lies in the bin.

        Ascending, `(number, dimensions - 1)`.
        """
        if frame not in self._totals:
            numbers = self.space.num_hidden_layers
            of_layers, totals = self._possible_totals(frame)
            low, high = self.last_totals(frame, of_layers, totals.T)
            fits = low <= high
            ends = np.searchsorted(of_layers[fits], numbers, side="right")
            self._totals[frame] = dict(zip(numbers, np.split(totals[fits], ends[:-1]), strict=True))
        return self._totals[frame][layers]

    def _possible_totals(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Totals of all dimensions but the last, `(number, dimensions - 1)`, and of how many layers, `(number,)`."""
        if self.space.stock_only:
            return self._totals_of_equal_layers(self.space.allowed_layers(frame))
        return self._all_totals

    @cached_property
    def _all_totals(self) -> tuple[np.ndarray, np.ndarray]:
        space, numbers = self.space, self.space.num_hidden_layers
        if not space.layer_wise:
            return self._totals_of_equal_layers(space.all_layers)
        ranges = [space.sizes(dimension) for dimension in self._enumerated]
        totals = [
            list(itertools.product(*(range(r[0] * number, r[-1] * number + 1, r.step) for r in ranges)))
            for number in numbers
        ]
        return np.repeat(numbers, list(map(len, totals))), np.array(list(itertools.chain(*totals)))

    def _totals_of_equal_layers(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_layers = np.repeat(self.space.num_hidden_layers, len(sizes))
        return of_layers, np.tile(sizes, (len(self.space.num_hidden_layers), 1)) * of_layers[:, None]

    def last_totals(self, frame: Frame, layers: Any, totals: Iterable[Any]) -> tuple[Any, Any]:
        """Least and greatest total over the layers of the last dimension that lies in the bin.

        Where no total lies in the bin, the least exceeds the greatest.

        Args:
            frame (`tuple[int, ...]`): shared sizes.
            layers (`int` or `np.ndarray`): number of layers.
            totals (`Iterable`): the total of each dimension but the last, numbers or arrays as `layers` is.
        """
        prices, sizes = self._cost.prices(frame), self.space.sizes(self._last)
        fewest, step, price = sizes[0] * layers, self.step(layers), prices.of(self._last)
        spent = prices.base(layers) + fewest * price
        for dimension, total in zip(self._enumerated, totals, strict=True):
            spent = spent + total * prices.of(dimension)
        steps = (sizes[-1] - sizes[0]) * layers // step
        if price:
            low = np.maximum(0, -np.floor_divide(spent - self._low, step * price))
            high = np.minimum(steps, np.floor_divide(self._high - spent, step * price))
        else:  # the last dimension is free
            low, high = 0 * spent, np.where((self._low <= spent) & (spent <= self._high), steps, -1)
        low, high = fewest + low * step, fewest + high * step
        return (int(low), int(high)) if np.ndim(layers) == 0 else (low, high)

    def greatest(self, cost: Polynomial) -> "Greatest":
        """The subnet of the bin that has the most of any cost.

        Raises:
            BinError: if no subnet lies in the bin.
        """
        _ = self.pairs  # raises
        found = (each for frame in self.space.frames if (each := self._greatest_of_frame(cost, frame)) is not None)
        return max(found, key=lambda each: each.cost)

    def _greatest_of_frame(self, cost: Polynomial, frame: Frame) -> "Greatest | None":
        of_layers, totals = self._possible_totals(frame)
        low, high = self.last_totals(frame, of_layers, totals.T)
        fits = low <= high
        if not fits.any():
            return None
        prices = cost.prices(frame)
        every = np.column_stack([totals[fits], high[fits]])
        of_entries = np.array([prices.of(dimension) for dimension in (*self._enumerated, self._last)])
        costs = prices.base(of_layers[fits]) + every @ of_entries
        best = int(np.argmax(costs))
        return Greatest(costs[best].item(), frame, int(of_layers[fits][best]), tuple(map(int, every[best])))

    def step(self, layers: Any) -> Any:
        """Distance between totals of the last dimension."""
        return self.space.sizes(self._last).step * (1 if self.space.layer_wise else layers)
