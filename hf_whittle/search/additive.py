"""Additive scores: replace one thing at a time in the full super-network, then solve for the best sum in the bin.

The scores of all replacements are added as if they did not depend on each other; which of them to make is a
mixed-integer program, one for each number of channels, solved exactly by `scipy.optimize.milp`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..cost import Bin
from ..search_space import SearchSpace
from ..subnet import Shape, SubnetConfig
from .algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig
from .evolution import EvolutionConfig


@dataclass
class AdditiveConfig(SearchConfig):
    """How the search by additive scores runs: it scores, solves, evaluates the best answers, and may evolve them."""

    name: ClassVar[str] = "additive"

    head_options: int = field(default=4, metadata={"help": "Numbers of heads tried in each layer."})
    neuron_options: int = field(default=4, metadata={"help": "Numbers of neurons tried in each layer."})
    channel_options: int = field(default=8, metadata={"help": "Numbers of channels tried."})
    levels: int = field(default=16, metadata={"help": "Numbers of neurons the program chooses from, interpolated."})
    answers: int = field(default=8, metadata={"help": "Best answers that are evaluated."})
    generations: int = field(default=0, metadata={"help": "Generations of evolution from the answers."})
    num_offspring: int = field(default=10, metadata={"help": "New candidates in such a generation."})
    num_elites: int = field(default=8, metadata={"help": "Best candidates so far that become parents in it."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})

    def __post_init__(self) -> None:
        self.require_at_least(head_options=1, neuron_options=1, channel_options=1, levels=2, answers=1, generations=0)
        self.evolution()

    def evolution(self) -> EvolutionConfig:
        return EvolutionConfig(
            generations=self.generations,
            population_size=1,
            num_offspring=self.num_offspring,
            num_elites=self.num_elites,
            mutation_rate=self.mutation_rate,
            seed=self.seed,
        )

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return AdditiveSearch(space, bin, self)


@dataclass(frozen=True)
class Replacement:
    """One change to the full super-network: a size in a layer (`size=0` leaves the layer out), or of the channels."""

    dimension: str
    layer: int
    size: int


class AdditiveSearch(SearchAlgorithm):
    """Scores of single replacements, the answers of the program, and evolution from these."""

    def __init__(self, space: SearchSpace, bin: Bin, config: AdditiveConfig):
        self.space, self.bin, self.config = space, bin, config
        self._breeder = Breeder(space, bin, config.seed)
        self._cost = bin.cost(space.config)
        space.reachable_pairs(bin)  # says so if there is nothing to find
        self._replacements = self._all_replacements()
        self._evolution = config.evolution().algorithm(space, bin)
        self._stage = 0

    @property
    def max_evaluations(self) -> int:
        evolved = self.config.generations * self.config.num_offspring
        return 1 + len(self._replacements) + self.config.answers + evolved

    def ask(self) -> list[Candidate]:
        self._stage += 1
        if self._stage == 1:
            full = Candidate(SubnetConfig.full(self.space.config), "replacement", in_bin=False)
            return [full, *(Candidate(self._with(r), "replacement", in_bin=False) for r in self._replacements)]
        if self._stage == 2:
            return self._breeder.first_new([Candidate(subnet, "answer") for subnet in self._answers()], self.config.answers)
        if self.config.generations == 0:
            return []
        if self._stage == 3:
            self._evolution.ask()  # its own first draws, which the answers stand in for
        return self._evolution.ask()

    def tell(self, evaluations: list[Evaluation]) -> None:
        if self._stage == 1:
            full, *others = (math.log(e.fitness) if 0 < e.fitness < math.inf else math.inf for e in evaluations)
            self._scores = dict(zip(self._replacements, (max(other - full, 0.0) for other in others), strict=True))
        else:
            self._evolution.tell(evaluations)

    def inform(self, evaluations: list[Evaluation]) -> None:
        self._evolution.inform(evaluations)

    def _all_replacements(self) -> list[Replacement]:
        space, full = self.space, Shape.from_config(self.space.config)
        layers = range(full.num_hidden_layers)
        sizes = {
            "heads": _some(space.num_attention_heads, self.config.head_options),
            "neurons": _some(space.intermediate_size, self.config.neuron_options),
        }
        found = [Replacement("channels", -1, size) for size in _some(space.hidden_size, self.config.channel_options)]
        if len(layers) > 1:
            found += [Replacement("layer", layer, 0) for layer in layers]
        found += [Replacement(name, layer, size) for name, some in sizes.items() for layer in layers for size in some]
        return [one for one in found if one.size < _full_size(full, one)]

    def _with(self, replacement: Replacement) -> SubnetConfig:
        """The full super-network with one replacement."""
        full, space, rng = SubnetConfig.full(self.space.config), self.space, self._breeder.rng
        if replacement.dimension == "layer":
            return full.with_layers([layer for layer in full.layers if layer != replacement.layer])
        if replacement.dimension == "channels":
            kept = space.entries("channels").choose(rng, replacement.size)
            return SubnetConfig(kept, full.num_hidden_layers, full.num_attention_heads, full.intermediate_size)
        heads, neurons = list(full.num_attention_heads), list(full.intermediate_size)
        changed = heads if replacement.dimension == "heads" else neurons
        changed[replacement.layer] = space.entries(replacement.dimension, replacement.layer).choose(rng, replacement.size)
        return SubnetConfig(full.hidden_size, full.num_hidden_layers, tuple(heads), tuple(neurons))

    # The program

    def _answers(self) -> list[SubnetConfig]:
        """The best subnet for each number of channels, from the lowest predicted score up."""
        solved = []
        for channels in sorted({channels for channels, _ in self.space.reachable_pairs(self.bin)}):
            answer = self._solve(channels)
            if answer is not None:
                solved.append(answer)
        return [subnet for _, subnet in sorted(solved, key=lambda pair: pair[0])]

    def _solve(self, channels: int) -> tuple[float, SubnetConfig] | None:
        """The best heads and neurons of each layer for a number of channels, with its predicted score."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        columns = self._columns(channels)
        layers = self.space.config.num_hidden_layers
        score = np.array([column.score for column in columns])
        price = np.array([column.price for column in columns])
        spent = self._cost.base(channels, 0)
        rows, low, high = [price], [self.bin.low - spent], [self.bin.high - spent]
        for layer in range(layers):  # a layer that is kept has one number of heads and one of neurons
            for name in ("heads", "neurons"):
                rows.append(_where(columns, lambda c, n=name, i=layer: c.layer == i and c.dimension in (n, "layer")))
                low.append(1), high.append(1)
        out = _where(columns, lambda c: c.dimension == "layer")
        rows.append(out)
        low.append(layers - self.space.num_hidden_layers[-1]), high.append(layers - self.space.num_hidden_layers[0])
        if self.space.granularity == "coarse":  # layers are left out from the last one on
            for layer in range(layers - 1):
                rows.append(
                    _where(columns, lambda c, i=layer: c.dimension == "layer" and c.layer == i + 1)
                    - _where(columns, lambda c, i=layer: c.dimension == "layer" and c.layer == i)
                )
                low.append(0), high.append(1)
        solution = milp(
            score,
            integrality=np.ones(len(columns)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(np.stack(rows), low, high),
            options={"mip_rel_gap": 1e-6, "time_limit": 60},
        )
        if solution.x is None:
            return None
        chosen = [column for column, value in zip(columns, solution.x, strict=True) if value > 0.5]
        return solution.fun + self._score("channels", -1, channels), self._assemble(channels, chosen)

    def _columns(self, channels: int) -> list["_Column"]:
        """What the program may choose, with its score and price: sizes of each layer, or leaving it out."""
        per_head, per_neuron = self._cost.per_head(channels), self._cost.per_neuron(channels)
        kept = self._cost.base(channels, 1) - self._cost.base(channels, 0)
        columns = []
        for layer in range(self.space.config.num_hidden_layers):
            if self.space.config.num_hidden_layers > 1:
                columns.append(_Column("layer", layer, 0, self._score("layer", layer, 0), 0.0))
            for size in self.space.num_attention_heads:
                score = self._score("heads", layer, size)
                columns.append(_Column("heads", layer, size, score, size * per_head + kept))
            for size in _some(self.space.intermediate_size, self.config.levels):
                score = self._score("neurons", layer, size)
                columns.append(_Column("neurons", layer, size, score, size * per_neuron))
        return columns

    def _score(self, dimension: str, layer: int, size: int) -> float:
        """The score of a replacement, between those that were tried linear in the size."""
        tried = {r.size: s for r, s in self._scores.items() if (r.dimension, r.layer) == (dimension, layer)}
        if dimension == "layer":
            return min(tried[0], 1e6)
        tried[_full_size(Shape.from_config(self.space.config), Replacement(dimension, layer, size))] = 0.0
        sizes = sorted(tried)
        return float(np.interp(size, sizes, [min(tried[known], 1e6) for known in sizes]))

    def _assemble(self, channels: int, chosen: Sequence["_Column"]) -> SubnetConfig:
        sizes = {(column.dimension, column.layer): column.size for column in chosen}
        layers = [layer for layer in range(self.space.config.num_hidden_layers) if ("heads", layer) in sizes]
        rng, entries = self._breeder.rng, self.space.entries
        return SubnetConfig(
            hidden_size=entries("channels").choose(rng, channels),
            num_hidden_layers=tuple(layers),
            num_attention_heads=tuple(entries("heads", i).choose(rng, sizes["heads", i]) for i in layers),
            intermediate_size=tuple(entries("neurons", i).choose(rng, sizes["neurons", i]) for i in layers),
        )
