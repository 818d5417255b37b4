"""Local search: move from the best of some draws to its best mutant as long as that is better."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import BudgetedConfig, BudgetedSearch, Candidate, Evaluation, SearchAlgorithm


@dataclass
class LocalSearchConfig(BudgetedConfig):
    """Settings of local search; without an improvement in `patience` batches it restarts from other draws."""

    name: ClassVar[str] = "local"

    population_size: int = field(default=50, metadata={"help": "Draws at a start, the best of which is kept."})
    num_neighbors: int = field(default=10, metadata={"help": "Mutants of the current subnet tried at a time."})
    patience: int = field(default=5, metadata={"help": "Batches without an improvement before a restart."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=1, num_neighbors=1, patience=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return LocalSearch(space, bin, self)


class LocalSearch(BudgetedSearch):
    """Hill climbing with restarts."""

    config: LocalSearchConfig
    _current: Evaluation | None = None
    _failures = 0

    def _next(self, most: int) -> list[Candidate]:
        current, breeder = self._current, self._breeder
        if current is None:
            return breeder.batch(min(self.config.population_size, most), breeder.sample)
        return breeder.batch(min(self.config.num_neighbors, most), lambda: breeder.mutate(current.subnet))

    def tell(self, evaluations: list[Evaluation]) -> None:
        best = min(evaluations, key=lambda e: e.fitness)
        if self._current is None or best.fitness < self._current.fitness:
            self._current, self._failures = best, 0
            return
        self._failures += 1
        if self._failures == self.config.patience:
            self._current, self._failures = None, 0
