"""Additive scores: replace one thing at a time in the full super-network, then solve for the best sum in the bin.

The scores of all replacements are added as if they did not depend on each other. Which of them to make is then a
mixed-integer linear program for each number of channels, solved to 0.01% of its score by `scipy.optimize.milp`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ...subnet import Kept, Shape, SubnetConfig
from ..algorithm import Candidate, Evaluation
from .multi_fidelity import MultiFidelityConfig, MultiFidelitySearch

_OPTIONS = {
    "mip_rel_gap": 1e-4,
    "node_limit": 2000,  # a limit of time would make the answer depend on the machine
    "presolve": False,  # presolving, HiGHS prints lines
}


@dataclass
class AdditiveSearchConfig(MultiFidelityConfig):
    """How the search by additive scores runs: it scores, solves, evaluates the best answers, and evolves them.

    The evolution is multi-fidelity evolution; with `generations=0`, the answers are all there is.
    """

    name: ClassVar[str] = "additive"

    head_options: int = field(default=4, metadata={"help": "Numbers of heads tried in each layer, with the full one."})
    neuron_options: int = field(
        default=4, metadata={"help": "Numbers of neurons tried in each layer, with the full one."}
    )
    channel_options: int = field(default=8, metadata={"help": "Numbers of channels tried, with the full one."})
    score_share: float = field(default=1.0, metadata={"help": "Share of the tokens that replacements are scored on."})
    levels: int = field(default=16, metadata={"help": "Sizes of a dimension that the program chooses from."})
    answers: int = field(default=8, metadata={"help": "Best answers of the program that are evaluated."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(head_options=1, neuron_options=1, channel_options=1, levels=2, answers=1)
        if not 0 < self.score_share <= 1:
            raise ValueError(f"score_share must be above 0 and at most 1, got {self.score_share}")

    def algorithm(self, space: SearchSpace, bin: Bin) -> "AdditiveSearch":
        return AdditiveSearch(space, bin, self)


@dataclass(frozen=True)
class Replacement:
    """One change to the full super-network: another size of a dimension; `layer` is -1 for the channels.

    A layer of size 0 is left out.
    """

    dimension: str
    layer: int
    size: int


class AdditiveSearch(MultiFidelitySearch):
    """Scores of single replacements, the answers of the program, and evolution from these."""

    def __init__(self, space: SearchSpace, bin: Bin, config: AdditiveSearchConfig):
        super().__init__(space, bin, config)
        self.config: AdditiveSearchConfig = config
        self._channels = sorted({channels for channels, _ in space.reachable_pairs(bin)})
        self._full = Shape.from_config(space.config)
        self._replacements = self._all_replacements()
        self._scores: dict[Replacement, float] = {}
        self._stage = 0

    @property
    def max_evaluations(self) -> int:
        evolved = self.config.generations * sum(self.config.sizes)
        return 1 + len(self._replacements) + self.config.answers + evolved

    def ask(self) -> list[Candidate]:
        self._stage += 1
        if self._stage == 1:
            changed = [SubnetConfig.full(self._full), *map(self._with, self._replacements)]
            return [
                Candidate(subnet, "replacement", share=self.config.score_share, in_space=False) for subnet in changed
            ]
        if self._stage == 2:
            answers = [Candidate(subnet, "answer") for subnet in self._answers()]
            return self._breeder.first_new(answers, self.config.answers)
        return super().ask()

    def tell(self, evaluations: list[Evaluation]) -> None:
        if self._stage == 1:
            full, *others = (evaluation.fitness for evaluation in evaluations)
            self._scores = dict(zip(self._replacements, additive_scores(full, others), strict=True))
        elif self._stage == 2:
            self.begin_from(evaluations)
        else:
            super().tell(evaluations)

    def _all_replacements(self) -> list[Replacement]:
        space, layers = self.space, range(self._full.num_hidden_layers)
        found = [Replacement("channels", -1, size) for size in _some(space.hidden_size, self.config.channel_options)]
        if len(layers) > 1:
            found += [Replacement("layer", layer, 0) for layer in layers]
        for name, sizes, options in (
            ("heads", space.num_attention_heads, self.config.head_options),
            ("neurons", space.intermediate_size, self.config.neuron_options),
        ):
            found += [Replacement(name, layer, size) for layer in layers for size in _some(sizes, options)]
        return [one for one in found if one.size < self._full_size(one.dimension, one.layer)]

    def _full_size(self, dimension: str, layer: int) -> int:
        if dimension == "layer":
            return 1
        if dimension == "channels":
            return self._full.hidden_size
        return (self._full.num_attention_heads if dimension == "heads" else self._full.intermediate_size)[layer]

    def _with(self, replacement: Replacement) -> SubnetConfig:
        """The full super-network with one replacement."""
        full, entries, rng = self._full, self.space.entries, self._breeder.rng
        if replacement.dimension == "layer":
            layers = [layer for layer in range(full.num_hidden_layers) if layer != replacement.layer]
            return SubnetConfig.full(full).with_layers(layers)
        kept = entries(replacement.dimension, replacement.layer).choose(rng, replacement.size)
        if replacement.dimension == "channels":
            return SubnetConfig(kept, full.num_hidden_layers, full.num_attention_heads, full.intermediate_size)
        heads: list[Kept] = list(full.num_attention_heads)
        neurons: list[Kept] = list(full.intermediate_size)
        (heads if replacement.dimension == "heads" else neurons)[replacement.layer] = kept
        return SubnetConfig(full.hidden_size, full.num_hidden_layers, tuple(heads), tuple(neurons))

    # The program

    def _answers(self) -> list[SubnetConfig]:
        """The best subnet for each of some numbers of channels, from the lowest predicted score up."""
        most = max(self.config.levels, self.config.answers)
        solved = [self._solve(channels) for channels in _some(self._channels, most)]
        found = sorted((answer for answer in solved if answer is not None), key=lambda pair: pair[0])
        return [subnet for _, subnet in found]

    def _solve(self, channels: int) -> tuple[float, SubnetConfig] | None:
        """The best heads and neurons of each layer for a number of channels, with its predicted score."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        columns = self._columns(channels)
        solution = milp(
            np.array([column.score for column in columns]),
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(*self._constraints(channels, columns)),
            options=_OPTIONS,
        )
        if solution.x is None:
            return None
        chosen = [column for column, value in zip(columns, solution.x, strict=True) if value > 0.5]
        subnet = self._assemble(channels, chosen)
        if not (self.space.contains(subnet) and self.bin.contains(self.space.config, subnet)):
            return None  # numbers of layers are a range with a step, or the ends of the bin within rounding
        return solution.fun + self._score("channels", -1, channels), subnet

    def _columns(self, channels: int) -> list["_Column"]:
        """What the program may choose, with its score and price: sizes of each layer, or leaving it out."""
        cost = self.bin.cost(self.space.config)
        layer_price = cost.base(channels, 1) - cost.base(channels, 0)
        per_head, per_neuron = cost.per_head(channels), cost.per_neuron(channels)
        heads = _some(self.space.heads_for(channels), self.config.levels)
        neurons = _some(self.space.intermediate_size, self.config.levels)
        columns = []
        for layer in range(self._full.num_hidden_layers):
            if self._full.num_hidden_layers > 1:
                columns.append(_Column("layer", layer, 0, self._score("layer", layer, 0), 0))
            for name, sizes, price, fixed in (
                ("heads", heads, per_head, layer_price),
                ("neurons", neurons, per_neuron, 0),
            ):
                columns += [
                    _Column(name, layer, size, self._score(name, layer, size), fixed + size * price) for size in sizes
                ]
        if not self.space.layer_wise:  # one choice for all layers
            columns += [_Column("all heads", -1, size, 0, 0) for size in heads]
            columns += [_Column("all neurons", -1, size, 0, 0) for size in neurons]
        return columns

    def _constraints(
        self, channels: int, columns: Sequence["_Column"]
    ) -> tuple[np.ndarray, Sequence[float], Sequence[float]]:
        """Rows of the program, each with its least and its greatest value."""
        layers, low, high = self._full.num_hidden_layers, self.bin.low, self.bin.high
        spent = self.bin.cost(self.space.config).base(channels, 0)
        rows: list[tuple[np.ndarray, float, float]] = []

        def where(layer: int | None, *dimensions: str, size: int | None = None) -> np.ndarray:
            """1 for the columns of these dimensions, of a layer and of a size unless it is `None`."""
            found = [
                column.dimension in dimensions and layer in (None, column.layer) and size in (None, column.size)
                for column in columns
            ]
            return np.array(found, dtype=float)

        prices = np.array([column.price for column in columns], dtype=float)
        scale = prices.max() or 1.0  # since the solver's tolerance is absolute
        rows.append((prices / scale, (low - spent) / scale, (high - spent) / scale))
        for layer in range(layers):  # it is left out, or has one number of heads and one of neurons
            rows += [(where(layer, name, "layer"), 1, 1) for name in ("heads", "neurons")]
        kept = self.space.num_hidden_layers
        rows.append((where(None, "layer"), layers - kept[-1], layers - kept[0]))
        if self.space.granularity == "coarse":  # the last layers are left out
            rows += [(where(i + 1, "layer") - where(i, "layer"), 0, 1) for i in range(layers - 1)]
        for name in () if self.space.layer_wise else ("heads", "neurons"):
            rows.append((where(None, f"all {name}"), 1, 1))
            for size in sorted({column.size for column in columns if column.dimension == f"all {name}"}):
                for_all = where(None, f"all {name}", size=size)
                rows.append((where(None, name, size=size) - layers * for_all, -math.inf, 0))
        coefficients, least, greatest = zip(*rows, strict=True)
        return np.stack(coefficients), least, greatest

    def _score(self, dimension: str, layer: int, size: int) -> float:
        """The score of a replacement, linear in the size between those that were tried."""
        tried = {r.size: s for r, s in self._scores.items() if (r.dimension, r.layer) == (dimension, layer)}
        tried[self._full_size(dimension, layer)] = 0.0
        sizes = sorted(tried)
        return float(np.interp(size, sizes, [tried[known] for known in sizes]))

    def _assemble(self, channels: int, chosen: Sequence["_Column"]) -> SubnetConfig:
        sizes = {(column.dimension, column.layer): column.size for column in chosen}
        layers = [layer for layer in range(self._full.num_hidden_layers) if ("heads", layer) in sizes]
        rng, entries = self._breeder.rng, self.space.entries
        kept_channels = entries("channels").choose(rng, channels)
        kept: list[tuple[Kept, ...]] = []
        for name in ("heads", "neurons"):
            if self.space.layer_wise:
                kept.append(tuple(entries(name, layer).choose(rng, sizes[name, layer]) for layer in layers))
            else:
                kept.append((entries(name).choose(rng, sizes[name, layers[0]]),) * len(layers))
        return SubnetConfig(kept_channels, tuple(layers), *kept)


@dataclass(frozen=True)
class _Column:
    """A choice of the program."""

    dimension: str
    layer: int
    size: int
    score: float
    price: float


def additive_scores(full: float, others: Sequence[float]) -> list[float]:
    """What each replacement costs in fitness, at least 0.

    A fitness that is nowhere below 1, as perplexity, is compared by its logarithm, in which replacements add up. One
    that is not finite costs ten times the worst of the others.
    """
    if min(full, *others, math.inf) >= 1:
        full, others = math.log(full), [math.log(other) for other in others]
    if not math.isfinite(full):
        return [0.0] * len(others)
    scores = [max(other - full, 0.0) for other in others]
    worst = 10 * max((score for score in scores if math.isfinite(score)), default=0.0) + 1
    return [score if math.isfinite(score) else worst for score in scores]


def _some(sizes: Sequence[int], number: int) -> list[int]:
    """At most `number` of the sizes, evenly spread, the least among them and, of several, the greatest."""
    if len(sizes) <= number:
        return list(sizes)
    if number == 1:
        return [sizes[0]]
    return [sizes[round(i * (len(sizes) - 1) / (number - 1))] for i in range(number)]
