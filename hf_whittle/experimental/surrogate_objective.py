"""Evolution on the predictions of a surrogate alone, before its best candidates are evaluated.

Experimental since it found 69.1 where the surrogate as a filter found 58.2 and the default search 49.4
(docs/results.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import ClassVar

from ..cost.bins import Bin
from ..search.algorithm import Candidate, Evaluation, SearchAlgorithm
from ..search.algorithms.surrogate import SurrogateSearch, SurrogateSearchConfig
from ..space.search_space import SearchSpace


@dataclass
class SurrogateObjectiveConfig(SurrogateSearchConfig):
    """Settings of search with a surrogate as the objective: `pool` subnets are bred in each inner generation."""

    name: ClassVar[str] = "surrogate-objective"

    inner_generations: int = field(default=10, metadata={"help": "Generations on predictions alone."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(inner_generations=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return SurrogateObjectiveSearch(space, bin, self)


class SurrogateObjectiveSearch(SurrogateSearch):
    """Evolution of predicted subnets, the best of which are evaluated."""

    config: SurrogateObjectiveConfig

    def _offspring(self, parents: Sequence[Evaluation | Candidate]) -> list[tuple[float, Candidate]]:
        pool: list[tuple[float, Candidate]] = []
        for _ in range(self.config.inner_generations):
            known = {candidate.subnet.digest for _, candidate in pool}
            bred = [candidate for candidate in self._bred(parents) if candidate.subnet.digest not in known]
            pool = sorted(pool + self._predicted(bred), key=itemgetter(0))
            parents = [candidate for _, candidate in pool[: self.config.num_elites]]
        return pool
