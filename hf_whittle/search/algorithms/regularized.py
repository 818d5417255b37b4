"""Regularized evolution (arXiv 1802.01548): tournaments choose parents, the oldest die."""

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import BudgetedConfig, BudgetedSearch, Candidate, Evaluation, SearchAlgorithm


@dataclass
class RegularizedEvolutionConfig(BudgetedConfig):
    """Settings of regularized evolution; `num_offspring=1` is as published, more are evaluated in parallel."""

    name: ClassVar[str] = "regularized-evolution"

    population_size: int = field(default=100, metadata={"help": "Candidates alive."})
    tournament_size: int = field(default=10, metadata={"help": "Candidates drawn, the best of which has offspring."})
    num_offspring: int = field(default=10, metadata={"help": "Offspring made before any of them is evaluated."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=1, tournament_size=1, num_offspring=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return RegularizedEvolution(space, bin, self)


class RegularizedEvolution(BudgetedSearch):
    """Mutants of tournament winners replace the oldest candidates, however good these are."""

    config: RegularizedEvolutionConfig

    def __init__(self, space: SearchSpace, bin: Bin, config: RegularizedEvolutionConfig):
        super().__init__(space, bin, config)
        self._population: deque[Evaluation] = deque(maxlen=config.population_size)

    def _next(self, most: int) -> list[Candidate]:
        if self._population:
            return self._breeder.batch(min(self.config.num_offspring, most), self._mutant)
        return self._breeder.batch(min(self.config.population_size, most), self._breeder.sample)

    def tell(self, evaluations: list[Evaluation]) -> None:
        self._population.extend(evaluations)

    def _mutant(self) -> Candidate:
        size = min(self.config.tournament_size, len(self._population))
        tournament = self._breeder.rng.sample(list(self._population), size)
        return self._breeder.mutate(min(tournament, key=lambda e: e.fitness).subnet)
