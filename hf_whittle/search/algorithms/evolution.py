"""Evolutionary search of the paper: elites of a population in a bin are mutated and crossed over."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig, best


@dataclass
class EvolutionConfig(SearchConfig):
    """Settings of the evolutionary search.

    The defaults are those of "Where to Begin: Efficient Pretraining via Subnetwork Selection and Distillation"
    (arXiv 2510.07227): 100 generations of 50 after an initial population, about 5,050 evaluations.

    Raises:
        ValueError: if a number is out of range.
    """

    name: ClassVar[str] = "evolution"

    generations: int = field(default=100, metadata={"help": "Generations after the initial population."})
    population_size: int = field(default=50, metadata={"help": "Candidates of the initial population."})
    num_offspring: int = field(default=50, metadata={"help": "New candidates in a generation."})
    num_elites: int = field(default=10, metadata={"help": "Best candidates so far that become parents."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})

    def __post_init__(self) -> None:
        self.require_at_least(generations=0, population_size=1, num_offspring=1, num_elites=1)
        self.require_shares("mutation_rate")

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return EvolutionarySearch(space, bin, self)


class EvolutionarySearch(SearchAlgorithm):
    """Evolution with elites: the best candidates so far are the parents of every new generation.

    No subnet is asked for twice. A generation is smaller than `num_offspring` where the space has fewer new subnets
    to give, and the search ends when it has none.

    Args:
        space (`SearchSpace`): space to search.
        bin (`Bin`): bin that the subnets must lie in.
        config (`EvolutionConfig`): settings.
    """

    def __init__(self, space: SearchSpace, bin: Bin, config: EvolutionConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._elites: list[Evaluation] = []
        self._generation = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.population_size + self.config.generations * self.config.num_offspring

    def ask(self) -> list[Candidate]:
        if self._generation > self.config.generations:
            return []
        self._generation += 1
        if self._generation == 1:
            return self._breeder.batch(self.config.population_size, self._breeder.sample)
        return self._breeder.batch(
            self.config.num_offspring, lambda: self._breeder.breed(self._elites, self.config.mutation_rate)
        )

    def tell(self, evaluations: list[Evaluation]) -> None:
        self._elites = best([*self._elites, *evaluations], self.config.num_elites)

    def inform(self, evaluations: list[Evaluation]) -> None:
        self.tell(evaluations)
