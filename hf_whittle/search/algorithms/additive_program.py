"""The program of additive search: the best sum of scores in a bin, as a mixed-integer linear program.

The scores of all replacements are added as if they were independent. For given sizes of the dimensions that all layers
share, such as channels, `scipy.optimize.milp` chooses the replacements of lowest total score, to within 0.01% of it.
"""

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...architectures.dimensions import LAYERS, Dimension
from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ...space.sizes import Frame

Size = TypeVar("Size")
_OPTIONS = {
    "mip_rel_gap": 1e-4,
    "node_limit": 2000,  # a limit of time would make the answer depend on the machine
    "presolve": False,  # HiGHS prints lines while it presolves
}


@dataclass(frozen=True)
class Replacement:
    """One change to the full super-network: another size of a dimension; a layer of size 0 is left out.

    Args:
        dimension (`Dimension`): the dimension.
        layer (`int`, *optional*): index of the layer; `None` for a dimension that all layers share.
        size (`int`): the size.
    """

    dimension: Dimension
    layer: int | None
    size: int


def full_size(space: SearchSpace, dimension: Dimension, layer: int | None) -> int:
    """Size of a dimension in the full super-network, 1 for a layer."""
    return 1 if dimension is LAYERS else space.full.size(dimension, layer or 0)


def evenly_spread(sizes: Sequence[Size], number: int) -> list[Size]:
    """At most `number` of the sizes, evenly spread, with the least and, if there are several, the greatest of them."""
    if len(sizes) <= number:
        return list(sizes)
    if number == 1:
        return [sizes[0]]
    return [sizes[round(i * (len(sizes) - 1) / (number - 1))] for i in range(number)]


@dataclass(frozen=True)
class _Column:
    """A choice of the program, with its score and its price in terms of the bin's cost.

    It is for all layers where `layer` is `None`.
    """

    dimension: Dimension
    layer: int | None
    size: int
    score: float = 0.0
    price: float = 0.0


_Row = tuple[np.ndarray, float, float]  # coefficients of the columns, least and greatest value of their sum


class Program:
    """The program of a bin.

    Args:
        space (`SearchSpace`): space of the subnets.
        bin (`Bin`): bin that they must lie in.
        scores (`Mapping[Replacement, float]`): score of every replacement tried.
        levels (`int`): sizes of a dimension to choose from.
    """

    def __init__(self, space: SearchSpace, bin: Bin, scores: Mapping[Replacement, float], levels: int):
        self.space, self.bin, self.levels = space, bin, levels
        self._scores = scores
        self._cost = bin.cost(space.config)
        self._layers = range(space.full.num_hidden_layers)

    def solve(self, frame: Frame) -> tuple[float, dict[tuple[Dimension, int], int]] | None:
        """The best sizes of layers for sizes of the shared dimensions.

        Returns:
            `tuple`: the total score, and the size by dimension and layer of the dimensions that layers have of their
            own, for the kept layers; `None` if no sizes lie in the bin.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        columns = list(self._columns(frame))
        coefficients, least, greatest = zip(*self._rows(frame, columns), strict=True)
        solution = milp(
            np.array([column.score for column in columns]),
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(np.stack(coefficients), least, greatest),
            options=_OPTIONS,
        )
        if solution.x is None:
            return None
        chosen = [column for column, value in zip(columns, solution.x, strict=True) if value > 0.5]
        sizes = {
            (column.dimension, column.layer): column.size
            for column in chosen
            if column.layer is not None and column.dimension is not LAYERS
        }
        shared = zip(self.space.architecture.shared, frame, strict=True)
        return solution.fun + sum(self._score(dimension, None, size) for dimension, size in shared), sizes

    def _columns(self, frame: Frame) -> Iterator[_Column]:
        """Choices of the program: sizes of each layer, or leaving it out; in a uniform space, sizes of all layers."""
        space, prices = self.space, self._cost.prices(frame)
        first, *_ = per_layer = space.architecture.per_layer
        sizes = {dimension: evenly_spread(space.sizes_for(dimension, frame), self.levels) for dimension in per_layer}
        for layer in self._layers:
            if len(self._layers) > 1:
                yield _Column(LAYERS, layer, 0, self._score(LAYERS, layer, 0))
            for dimension, of_dimension in sizes.items():
                of_layer = prices.layer if dimension is first else 0  # every kept layer has one size of the first
                for size in of_dimension:
                    price = of_layer + size * prices.of(dimension)
                    yield _Column(dimension, layer, size, self._score(dimension, layer, size), price)
        if not space.layer_wise:
            yield from (_Column(dimension, None, size) for dimension in per_layer for size in sizes[dimension])

    def _rows(self, frame: Frame, columns: Sequence[_Column]) -> Iterator[_Row]:
        yield self._price_row(frame, columns)
        for layer, dimension in itertools.product(self._layers, self.space.architecture.per_layer):
            yield _where(columns, (dimension, LAYERS), [layer]), 1, 1  # it is left out, or has one size
        kept, left_out = self.space.num_hidden_layers, _where(columns, (LAYERS,), self._layers)
        yield left_out, len(self._layers) - kept[-1], len(self._layers) - kept[0]
        if self.space.granularity == "coarse":  # the last layers are left out
            for before, layer in itertools.pairwise(self._layers):
                yield _where(columns, (LAYERS,), [layer]) - _where(columns, (LAYERS,), [before]), 0, 1
        if not self.space.layer_wise:
            yield from self._uniform_rows(columns)

    def _price_row(self, frame: Frame, columns: Sequence[_Column]) -> _Row:
        """The cost lies in the bin; scaled, since the tolerance of the solver is absolute."""
        spent = self._cost.prices(frame).model
        prices = np.array([column.price for column in columns], dtype=float)
        scale = prices.max() or 1.0
        return prices / scale, (self.bin.low - spent) / scale, (self.bin.high - spent) / scale

    def _uniform_rows(self, columns: Sequence[_Column]) -> Iterator[_Row]:
        """One size is chosen for all layers, and a layer has no other."""
        for dimension in self.space.architecture.per_layer:
            yield _where(columns, (dimension,), [None]), 1, 1
            for size in sorted({column.size for column in columns if column.dimension is dimension}):
                of_layers = _where(columns, (dimension,), self._layers, size)
                for_all = _where(columns, (dimension,), [None], size)
                yield of_layers - len(self._layers) * for_all, -math.inf, 0

    def _score(self, dimension: Dimension, layer: int | None, size: int) -> float:
        """Score of a replacement, interpolated linearly between the sizes that were tried."""
        tried = {r.size: s for r, s in self._scores.items() if (r.dimension, r.layer) == (dimension, layer)}
        tried[full_size(self.space, dimension, layer)] = 0.0
        sizes = sorted(tried)
        return float(np.interp(size, sizes, [tried[known] for known in sizes]))


def _where(
    columns: Sequence[_Column],
    dimensions: Sequence[Dimension],
    layers: Container[int | None],
    size: int | None = None,
) -> np.ndarray:
    """1 for the columns of some dimensions and layers, and of a size unless it is `None`; else 0. `(columns,)`."""
    found = [
        column.dimension in dimensions and column.layer in layers and size in (None, column.size) for column in columns
    ]
    return np.array(found, dtype=float)
