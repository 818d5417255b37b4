"""Local search: from the best of a few draws, to the best of its mutants, as long as that is better."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig


@dataclass
class LocalSearchConfig(SearchConfig):
    """How local search runs; without an improvement in `patience` batches it starts anew from other draws."""

    name: ClassVar[str] = "local"

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})
    population_size: int = field(default=50, metadata={"help": "Draws a start is the best of."})
    num_neighbours: int = field(default=10, metadata={"help": "Mutants of the current subnet tried at a time."})
    patience: int = field(default=5, metadata={"help": "Batches without an improvement before a new start."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=1, num_neighbours=1, patience=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return LocalSearch(space, bin, self)


class LocalSearch(SearchAlgorithm):
    """Hill climbing with restarts."""

    def __init__(self, space: SearchSpace, bin: Bin, config: LocalSearchConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._current: Evaluation | None = None
        self._asked = self._failures = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        current, left = self._current, self.config.evaluations - self._asked
        if current is None:
            batch = self._breeder.batch(min(self.config.population_size, left), self._breeder.sample)
        else:
            batch = self._breeder.batch(
                min(self.config.num_neighbours, left), lambda: self._breeder.mutate(current.subnet)
            )
        self._asked += len(batch)
        return batch

    def tell(self, evaluations: list[Evaluation]) -> None:
        best = min(evaluations, key=lambda e: e.fitness)
        if self._current is None or best.fitness < self._current.fitness:
            self._current, self._failures = best, 0
            return
        self._failures += 1
        if self._failures == self.config.patience:
            self._current, self._failures = None, 0
