"""NSGA-II for fitness against a cost, by `pymoo`: the Pareto front within a bin."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig


@dataclass
class NSGA2Config(SearchConfig):
    """How NSGA-II runs; the second objective is the cost that the bin bounds."""

    name: ClassVar[str] = "nsga2"

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})
    population_size: int = field(default=50, metadata={"help": "Candidates alive, and made in a generation."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=2)
        self.require_shares("mutation_rate")

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return NSGA2Search(space, bin, self)


class NSGA2Search(SearchAlgorithm):
    """Non-dominated sorting and crowding distance choose who survives and who breeds.

    Survival, ranks and tournaments are pymoo's; offspring come from the space, so that they lie in the bin.
    """

    def __init__(self, space: SearchSpace, bin: Bin, config: NSGA2Config):
        try:
            from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
        except ImportError as error:
            raise ImportError("NSGA-II needs pymoo: pip install 'hf_whittle[search]'") from error
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._cost = bin.cost(space.config)
        self._survival = RankAndCrowding()
        self._population: Any = None
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        size = min(self.config.population_size, self.config.evaluations - self._asked)
        draw = self._breed if self._asked else self._breeder.sample
        batch = self._breeder.batch(size, draw)
        self._asked += len(batch)
        return batch

    def tell(self, evaluations: list[Evaluation]) -> None:
        from pymoo.core.individual import Individual
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem

        told = Population.create()
        for evaluation in evaluations:
            objectives = np.array([min(evaluation.fitness, 1e300), self._cost(evaluation.subnet)])
            told = Population.merge(told, Population.create(Individual(X=evaluation, F=objectives)))
        merged = told if self._population is None else Population.merge(self._population, told)
        problem = Problem(n_var=1, n_obj=2)
        self._population = self._survival.do(
            problem, merged, n_survive=self.config.population_size, random_state=np.random.default_rng(self.config.seed)
        )

    def inform(self, evaluations: list[Evaluation]) -> None:
        if evaluations:
            self.tell(evaluations)

    def _breed(self) -> Candidate:
        return self._breeder.breed([self._tournament(), self._tournament()], self.config.mutation_rate)

    def _tournament(self) -> Evaluation:
        """The better of two at random: of lower rank, or less crowded."""
        first, second = (self._breeder.rng.choice(self._population) for _ in range(2))
        better = min(first, second, key=lambda one: (one.get("rank"), -one.get("crowding")))
        return better.X
