"""The interface of a search algorithm: it is asked for candidates and told their fitness."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from ..checks import check_integers, check_shares
from ..cost.bins import Bin
from ..space.search_space import SearchSpace
from ..subnet import SubnetConfig

_ATTEMPTS = 50  # draws that may repeat a known subnet before a place in a batch is left empty


@dataclass(frozen=True)
class Candidate:
    """A subnet to evaluate, and how it came about.

    Args:
        subnet (`SubnetConfig`): the subnet.
        origin (`str`): such as `"sample"`, `"mutation"` or `"crossover"`.
        parents (`tuple[str, ...]`): digests of the subnets it was made from.
        share (`float`): share of the fitness' tokens to evaluate it on; a smaller share is part of a larger one.
        in_space (`bool`): whether it is known to belong to the space; one that does not is no answer.
    """

    subnet: SubnetConfig
    origin: str = "sample"
    parents: tuple[str, ...] = ()
    share: float = 1.0
    in_space: bool = True

    @property
    def key(self) -> tuple[str, float]:
        """What makes two evaluations the same."""
        return self.subnet.digest, self.share


@dataclass(frozen=True)
class Evaluation:
    """A candidate and what was found out about it.

    Args:
        subnet (`SubnetConfig`): the subnet.
        fitness (`float`): what is minimised; infinite where evaluation failed or overflowed.
        parameters (`int`): of its student.
        cost (`float`): what the bins bound.
        bins (`tuple[int, ...]`): the bins of the search it lies in, counted from 0; none if it is not of the space. A
            search may try such subnets, which are not among its answers.
        generation (`int`): the batch it was in, counted from 0.
        origin (`str`): how it came about.
        parents (`tuple[str, ...]`): digests of the subnets it was made from.
        share (`float`): share of the fitness' tokens it was evaluated on.
        tokens (`int`): tokens read to evaluate it.
        flops (`int`): FLOPs spent on it.
    """

    subnet: SubnetConfig
    fitness: float
    parameters: int
    cost: float
    bins: tuple[int, ...]
    generation: int
    origin: str
    parents: tuple[str, ...]
    share: float = 1.0
    tokens: int = 0
    flops: int = 0

    @property
    def is_answer(self) -> bool:
        """Whether it lies in a bin and was evaluated on all tokens, so that it compares with others."""
        return self.share == 1 and bool(self.bins)

    @property
    def key(self) -> tuple[str, float]:
        return self.subnet.digest, self.share


class SearchAlgorithm(ABC):
    """A search: `ask` for a batch of candidates, evaluate them, `tell` their fitness, until `ask` gives none.

    An algorithm draws only on its own seed and on what it is told. So its state is what it was told: a search is
    resumed by telling a new instance the evaluations that are known already.
    """

    @property
    @abstractmethod
    def max_evaluations(self) -> int:
        """The most candidates the search will ask to evaluate."""

    @abstractmethod
    def ask(self) -> list[Candidate]:
        """The next batch of candidates, none of which was asked for before; empty when the search is over."""

    @abstractmethod
    def tell(self, evaluations: list[Evaluation]) -> None:
        """Take in the evaluations of the candidates last asked for, in their order."""

    def inform(self, evaluations: list[Evaluation]) -> None:  # noqa: B027, an algorithm may do without
        """Take in evaluations that another search made and that lie in this one's bin; by default they are ignored."""


@dataclass
class SearchConfig(ABC):
    """How a search runs; each algorithm has one of its own.

    Args:
        seed (`int`): seed of every random choice.
    """

    name: ClassVar[str]

    seed: int = field(default=0, kw_only=True, metadata={"help": "Seed of every random choice."})

    @abstractmethod
    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        """The search these settings describe."""

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for two searches to ask for the same candidates."""
        return {"name": self.name, **vars(self)}

    def require_at_least(self, **least: int) -> None:
        """Raise `ValueError` for a setting below its least value; the seed must not be negative."""
        check_integers(self, {"seed": 0, **least})

    def require_shares(self, *names: str) -> None:
        """Raise `ValueError` for a setting that is not a share."""
        check_shares(self, *names)


def best(evaluations: Sequence[Evaluation], number: int) -> list[Evaluation]:
    """Those of lowest fitness, the best first, each subnet once."""
    distinct = {evaluation.subnet: evaluation for evaluation in evaluations}
    return sorted(distinct.values(), key=lambda evaluation: evaluation.fitness)[:number]


class Breeder:
    """Makes subnets in a bin that were not made before: drawn, mutated or crossed over.

    Args:
        space (`SearchSpace`): where they come from.
        bin (`Bin`): what they must lie in.
        seed (`int`): of every choice.
    """

    def __init__(self, space: SearchSpace, bin: Bin, seed: int):
        self.space, self.bin, self.rng = space, bin, Random(seed)
        self._known: set[str] = set()

    def sample(self) -> Candidate:
        return Candidate(self.space.sample(self.rng, self.bin))

    def mutate(self, parent: SubnetConfig) -> Candidate:
        return Candidate(self.space.mutate(parent, self.rng, self.bin), "mutation", (parent.digest,))

    def cross(self, first: SubnetConfig, second: SubnetConfig) -> Candidate:
        child = self.space.crossover(first, second, self.rng, self.bin)
        return Candidate(child, "crossover", (first.digest, second.digest))

    def breed(self, parents: Sequence[Evaluation | Candidate], mutation_rate: float) -> Candidate:
        """A mutant of one of the parents or, as often as `mutation_rate` leaves, a child of two."""
        if self.rng.random() < mutation_rate or len(parents) < 2:
            return self.mutate(self.rng.choice(parents).subnet)
        first, second = self.rng.sample(parents, 2)
        return self.cross(first.subnet, second.subnet)

    def new(self, draw: Callable[[], Candidate]) -> Candidate | None:
        """A candidate nobody has seen; where `draw` gives only known ones, a sample; `None` if even those are."""
        for attempt in range(_ATTEMPTS):
            candidate = draw() if attempt < _ATTEMPTS // 2 else self.sample()
            if candidate.subnet.digest not in self._known:
                self._known.add(candidate.subnet.digest)
                return candidate
        return None

    def first_new(self, candidates: Sequence[Candidate], size: int) -> list[Candidate]:
        """The first `size` of these that nobody has seen, and samples where there are too few."""
        batch: list[Candidate] = []
        for candidate in candidates:
            if len(batch) < size and candidate.subnet.digest not in self._known:
                self._known.add(candidate.subnet.digest)
                batch.append(candidate)
        return batch + self.batch(size - len(batch), self.sample)

    def batch(self, size: int, draw: Callable[[], Candidate]) -> list[Candidate]:
        """At most `size` new candidates."""
        return [candidate for _ in range(size) if (candidate := self.new(draw)) is not None]
