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
