"""Random search, the control of every other."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import BudgetedConfig, BudgetedSearch, Candidate, Evaluation, SearchAlgorithm


@dataclass
class RandomSearchConfig(BudgetedConfig):
    """Settings of random search: independent draws of the space's sampler."""

    name: ClassVar[str] = "random"

    num_draws: int = field(default=50, metadata={"help": "Candidates drawn at a time."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, num_draws=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return RandomSearch(space, bin, self)


class RandomSearch(BudgetedSearch):
    """Draws of the space's sampler, none of them twice."""

    config: RandomSearchConfig

    def _next(self, most: int) -> list[Candidate]:
        return self._draw(min(self.config.num_draws, most))

    def _draw(self, size: int) -> list[Candidate]:
        return self._breeder.batch(size, self._breeder.sample)

    def tell(self, evaluations: list[Evaluation]) -> None:
        """Random search learns nothing."""
