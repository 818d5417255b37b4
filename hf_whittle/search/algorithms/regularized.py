"""Regularised evolution (arXiv 1802.01548): tournaments choose parents, the oldest die."""

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig


@dataclass
class RegularizedEvolutionConfig(SearchConfig):
    """How regularised evolution runs; `num_offspring=1` is as published, more of them evaluate in parallel."""

    name: ClassVar[str] = "regularized-evolution"

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})
    population_size: int = field(default=100, metadata={"help": "Candidates alive."})
    tournament_size: int = field(default=10, metadata={"help": "Candidates drawn, the best of which has offspring."})
    num_offspring: int = field(default=10, metadata={"help": "Offspring made before any of them is evaluated."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=1, tournament_size=1, num_offspring=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return RegularizedEvolution(space, bin, self)


class RegularizedEvolution(SearchAlgorithm):
    """Mutants of tournament winners replace the oldest candidates, whatever these are worth."""

    def __init__(self, space: SearchSpace, bin: Bin, config: RegularizedEvolutionConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._population: deque[Evaluation] = deque(maxlen=config.population_size)
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        left = self.config.evaluations - self._asked
        if self._population:
            batch = self._breeder.batch(min(self.config.num_offspring, left), self._mutant)
        else:
            batch = self._breeder.batch(min(self.config.population_size, left), self._breeder.sample)
        self._asked += len(batch)
        return batch

    def tell(self, evaluations: list[Evaluation]) -> None:
        self._population.extend(evaluations)

    def _mutant(self) -> Candidate:
        size = min(self.config.tournament_size, len(self._population))
        tournament = self._breeder.rng.sample(list(self._population), size)
        return self._breeder.mutate(min(tournament, key=lambda e: e.fitness).subnet)
