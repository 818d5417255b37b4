"""The program of additive search: the best sum of scores in a bin, as a mixed-integer linear program.

The scores of all replacements are added as if they were independent. For each number of channels, `scipy.optimize.milp`
chooses the replacements of lowest total score, to within 0.01% of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ...subnet import Shape

_OPTIONS = {
    "mip_rel_gap": 1e-4,
    "node_limit": 2000,  # a limit of time would make the answer depend on the machine
    "presolve": False,  # HiGHS prints lines while it presolves
}


@dataclass(frozen=True)
class Replacement:
    """One change to the full super-network: another size of a dimension; a layer of size 0 is left out.

    Args:
        dimension (`str`): `"channels"`, `"layer"`, `"heads"` or `"neurons"`.
        layer (`int`): index of the layer, -1 for the channels.
        size (`int`): the size.
    """

    dimension: str
    layer: int
    size: int


def full_size(full: Shape, dimension: str, layer: int) -> int:
    """Size of a dimension in the full super-network, 1 for a layer."""
    if dimension == "layer":
        return 1
    if dimension == "channels":
        return full.hidden_size
    return (full.num_attention_heads if dimension == "heads" else full.intermediate_size)[layer]


def evenly_spread(sizes: Sequence[int], number: int) -> list[int]:
    """At most `number` of the sizes, evenly spread, with the least and, if there are several, the greatest of them."""
    if len(sizes) <= number:
        return list(sizes)
    if number == 1:
        return [sizes[0]]
    return [sizes[round(i * (len(sizes) - 1) / (number - 1))] for i in range(number)]


@dataclass(frozen=True)
class _Column:
    """A choice of the program, with its score and its price in terms of the bin's cost."""

    dimension: str
    layer: int
    size: int
    score: float
    price: float


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
        self._scores, self._full = scores, Shape.from_config(space.config)
        self._cost = bin.cost(space.config)
        self._layers = self._full.num_hidden_layers

    def solve(self, channels: int) -> tuple[float, dict[tuple[str, int], int]] | None:
        """The best sizes for a number of channels.

        Returns:
            `tuple`: the total score, and the size by dimension and layer, `"heads"` and `"neurons"` of the kept layers;
            `None` if no sizes lie in the bin.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        columns = list(self._columns(channels))
        coefficients, least, greatest = zip(*self._rows(channels, columns), strict=True)
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
        sizes = {(column.dimension, column.layer): column.size for column in chosen}
        return solution.fun + self._score("channels", -1, channels), sizes

    def _columns(self, channels: int) -> Iterator[_Column]:
        """Choices of the program: sizes of each layer, or leaving it out; in a uniform space, sizes of all layers."""
        cost = self._cost
        layer_price = cost.base(channels, 1) - cost.base(channels, 0)
        heads = evenly_spread(self.space.heads_for(channels), self.levels)
        neurons = evenly_spread(self.space.intermediate_size, self.levels)
        per_head, per_neuron = cost.per_head(channels), cost.per_neuron(channels)
        for layer in range(self._layers):
            if self._layers > 1:
                yield _Column("layer", layer, 0, self._score("layer", layer, 0), 0)
            for size in heads:
                yield _Column("heads", layer, size, self._score("heads", layer, size), layer_price + size * per_head)
            for size in neurons:
                yield _Column("neurons", layer, size, self._score("neurons", layer, size), size * per_neuron)
        if not self.space.layer_wise:
            yield from (_Column("all heads", -1, size, 0, 0) for size in heads)
            yield from (_Column("all neurons", -1, size, 0, 0) for size in neurons)

    def _rows(self, channels: int, columns: Sequence[_Column]) -> Iterator[_Row]:
        yield self._price_row(channels, columns)
        for layer in range(self._layers):  # it is left out, or has one number of heads and one of neurons
            for name in ("heads", "neurons"):
                yield _where(columns, name, "layer", layer=layer), 1, 1
        kept, left_out = self.space.num_hidden_layers, _where(columns, "layer")
        yield left_out, self._layers - kept[-1], self._layers - kept[0]
        if self.space.granularity == "coarse":  # the last layers are left out
            for i in range(self._layers - 1):
                yield _where(columns, "layer", layer=i + 1) - _where(columns, "layer", layer=i), 0, 1
        if not self.space.layer_wise:
            yield from self._uniform_rows(columns)

    def _price_row(self, channels: int, columns: Sequence[_Column]) -> _Row:
        """The cost lies in the bin; scaled, since the tolerance of the solver is absolute."""
        spent = self._cost.base(channels, 0)
        prices = np.array([column.price for column in columns], dtype=float)
        scale = prices.max() or 1.0
        return prices / scale, (self.bin.low - spent) / scale, (self.bin.high - spent) / scale

    def _uniform_rows(self, columns: Sequence[_Column]) -> Iterator[_Row]:
        """One size is chosen for all layers, and a layer has no other."""
        for name in ("heads", "neurons"):
            yield _where(columns, f"all {name}"), 1, 1
            for size in sorted({column.size for column in columns if column.dimension == f"all {name}"}):
                for_all = _where(columns, f"all {name}", size=size)
                yield _where(columns, name, size=size) - self._layers * for_all, -math.inf, 0

    def _score(self, dimension: str, layer: int, size: int) -> float:
        """Score of a replacement, interpolated linearly between the sizes that were tried."""
        tried = {r.size: s for r, s in self._scores.items() if (r.dimension, r.layer) == (dimension, layer)}
        tried[full_size(self._full, dimension, layer)] = 0.0
        sizes = sorted(tried)
        return float(np.interp(size, sizes, [tried[known] for known in sizes]))


def _where(
    columns: Sequence[_Column], *dimensions: str, layer: int | None = None, size: int | None = None
) -> np.ndarray:
    """1 for the columns of these dimensions, of a layer and of a size unless it is `None`; else 0. `(columns,)`."""
    found = [
        column.dimension in dimensions and layer in (None, column.layer) and size in (None, column.size)
        for column in columns
    ]
    return np.array(found, dtype=float)
