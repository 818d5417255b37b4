"""NSGA-II for fitness against a cost, with `pymoo`: the Pareto front within a bin."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import BudgetedConfig, BudgetedSearch, Candidate, Evaluation, SearchAlgorithm


@dataclass
class NSGA2Config(BudgetedConfig):
    """Settings of NSGA-II, whose second objective is the cost that the bin bounds."""

    name: ClassVar[str] = "nsga2"

    population_size: int = field(default=50, metadata={"help": "Candidates alive, and bred in a generation."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, population_size=2)
        self.require_shares("mutation_rate")

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return NSGA2Search(space, bin, self)


class NSGA2Search(BudgetedSearch):
    """Evolution whose survivors and parents are chosen by non-dominated sorting and crowding distance.

    pymoo sorts and selects the survivors; offspring come from the space, so that they lie in the bin.
    """

    config: NSGA2Config

    def __init__(self, space: SearchSpace, bin: Bin, config: NSGA2Config):
        try:
            from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
        except ImportError as error:
            raise ImportError("NSGA-II needs pymoo: pip install 'hf_whittle[search]'") from error
        super().__init__(space, bin, config)
        self._cost = bin.cost(space.config)
        self._survival = RankAndCrowding()
        self._population: Any = None

    def _next(self, most: int) -> list[Candidate]:
        draw = self._breed if self._asked else self._breeder.sample
        return self._breeder.batch(min(self.config.population_size, most), draw)

    def tell(self, evaluations: list[Evaluation]) -> None:
        from pymoo.core.individual import Individual
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem

        new = Population.create()
        for evaluation in evaluations:
            objectives = np.array([min(evaluation.fitness, 1e300), self._cost(evaluation.subnet)])
            new = Population.merge(new, Population.create(Individual(X=evaluation, F=objectives)))
        merged = new if self._population is None else Population.merge(self._population, new)
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
        """Draw two and take the one of lower rank, or the less crowded one."""
        first, second = (self._breeder.rng.choice(self._population) for _ in range(2))
        better = min(first, second, key=lambda one: (one.get("rank"), -one.get("crowding")))
        return better.X
