"""Random search, the control of every other."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig


@dataclass
class RandomSearchConfig(SearchConfig):
    """Settings of random search: independent draws of the space's sampler."""

    name: ClassVar[str] = "random"

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})
    num_draws: int = field(default=50, metadata={"help": "Candidates drawn at a time."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, num_draws=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return RandomSearch(space, bin, self)


class RandomSearch(SearchAlgorithm):
    """Draws of the space's sampler, none of them twice."""

    def __init__(self, space: SearchSpace, bin: Bin, config: RandomSearchConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        batch = self._draw(min(self.config.num_draws, self.config.evaluations - self._asked))
        self._asked += len(batch)
        return batch

    def _draw(self, size: int) -> list[Candidate]:
        return self._breeder.batch(size, self._breeder.sample)

    def tell(self, evaluations: list[Evaluation]) -> None:
        """Random search learns nothing."""
