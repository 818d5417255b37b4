"""The paper's evolutionary search: elites of a population in a bin, mutated and crossed over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from ..cost import Bin
from ..search_space import SearchSpace
from .algorithm import Candidate, Evaluation, SearchAlgorithm

_ATTEMPTS = 50  # draws that may repeat a known subnet before a place in a generation is left empty


@dataclass
class EvolutionConfig:
    """How the evolutionary search runs.

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
    seed: int = field(default=0, metadata={"help": "Seed of every random choice."})

    def __post_init__(self) -> None:
        for name, least in (("generations", 0), ("population_size", 1), ("num_offspring", 1), ("num_elites", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.mutation_rate <= 1:
            raise ValueError(f"mutation_rate must lie between 0 and 1, got {self.mutation_rate}")

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        """The search these settings describe."""
        return EvolutionarySearch(space, bin, self)


class EvolutionarySearch(SearchAlgorithm):
    """Evolution with elites: the best candidates so far are the parents of every new generation.

    The same subnet is never asked for twice. A generation is smaller than asked where the space has no more subnets
    to give, and the search ends when it has none.

    Args:
        space (`SearchSpace`): where to search.
        bin (`Bin`): what the subnets must lie in.
        config (`EvolutionConfig`): how to search.
    """

    def __init__(self, space: SearchSpace, bin: Bin, config: EvolutionConfig):
        self.space, self.bin, self.config = space, bin, config
        self._rng = Random(config.seed)
        self._known: set[str] = set()
        self._elites: list[Evaluation] = []
        self._generation = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.population_size + self.config.generations * self.config.num_offspring

    def ask(self) -> list[Candidate]:
        if self._generation > self.config.generations:
            return []
        first = self._generation == 0
        draw, size = (self._sample, self.config.population_size) if first else (self._breed, self.config.num_offspring)
        candidates = [candidate for _ in range(size) if (candidate := self._new(draw)) is not None]
        self._generation += 1
        return candidates

    def tell(self, evaluations: list[Evaluation]) -> None:
        self._elites = sorted([*self._elites, *evaluations], key=lambda e: e.fitness)[: self.config.num_elites]

    def _new(self, draw: Callable[[], Candidate]) -> Candidate | None:
        """A candidate not known yet; where breeding gives only known ones, a sample."""
        for attempt in range(_ATTEMPTS):
            candidate = draw() if attempt < _ATTEMPTS // 2 else self._sample()
            if candidate.subnet.digest not in self._known:
                self._known.add(candidate.subnet.digest)
                return candidate
        return None

    def _sample(self) -> Candidate:
        return Candidate(self.space.sample(self._rng, self.bin))

    def _breed(self) -> Candidate:
        if self._rng.random() < self.config.mutation_rate or len(self._elites) < 2:
            parent = self._rng.choice(self._elites).subnet
            return Candidate(self.space.mutate(parent, self._rng, self.bin), "mutation", (parent.digest,))
        first, second = (elite.subnet for elite in self._rng.sample(self._elites, 2))
        child = self.space.crossover(first, second, self._rng, self.bin)
        return Candidate(child, "crossover", (first.digest, second.digest))
