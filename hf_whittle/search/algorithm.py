"""Interface of search algorithms, and the breeding of candidates that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from ..checks import check_integers, check_shares
from ..cost.bins import Bin
from ..space.search_space import SearchSpace
from ..subnet import SubnetConfig

_ATTEMPTS = 50  # draws of known subnets after which a place in a batch stays empty


@dataclass(frozen=True)
class Candidate:
    """A subnet to evaluate.

    Args:
        subnet (`SubnetConfig`): the subnet.
        origin (`str`): how it was made, such as `"sample"`, `"mutation"` or `"crossover"`.
        parents (`tuple[str, ...]`): digests of the subnets it was made from.
        share (`float`): share of the fitness' tokens to evaluate it on; a smaller share is part of a larger one.
        in_space (`bool`): whether it is known to belong to the space; `False` where that must be checked.
    """

    subnet: SubnetConfig
    origin: str = "sample"
    parents: tuple[str, ...] = ()
    share: float = 1.0
    in_space: bool = True

    @property
    def key(self) -> tuple[str, float]:
        """Digest of the subnet and share of the tokens, which identify an evaluation."""
        return self.subnet.digest, self.share


@dataclass(frozen=True)
class Evaluation:
    """A candidate with its fitness and costs.

    Args:
        subnet (`SubnetConfig`): the subnet.
        fitness (`float`): value to minimize; infinite where evaluation failed or overflowed.
        parameters (`int`): parameters of its student.
        cost (`float`): the cost that the bins bound.
        bins (`tuple[int, ...]`): bins of the search that hold it, counted from 0; none if it is outside of the space.
            A search may try subnets outside of its bins, which are not among its answers.
        generation (`int`): number of its batch, counted from 0.
        origin (`str`): how it was made.
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
        """Whether it lies in a bin and was evaluated on all tokens, and so compares with other answers."""
        return self.share == 1 and bool(self.bins)

    @property
    def key(self) -> tuple[str, float]:
        return self.subnet.digest, self.share


class SearchAlgorithm(ABC):
    """A search: `ask` for a batch of candidates, evaluate them and `tell` their evaluations until `ask` gives none.

    An algorithm depends only on its seed and the evaluations it gets. So an interrupted search is resumed by a new
    instance that gets the evaluations already made.
    """

    @property
    @abstractmethod
    def max_evaluations(self) -> int:
        """Upper bound of the candidates that the search asks for."""

    @abstractmethod
    def ask(self) -> list[Candidate]:
        """Give the next batch of candidates, none of which was given before; empty when the search is over."""

    @abstractmethod
    def tell(self, evaluations: list[Evaluation]) -> None:
        """Take the evaluations of the last batch, in its order."""

    def inform(self, evaluations: list[Evaluation]) -> None:  # noqa: B027 (optional)
        """Take evaluations in this bin that the search of another bin made; by default they are ignored."""


@dataclass
class SearchConfig(ABC):
    """Settings of a search; each algorithm has a class of its own.

    Args:
        seed (`int`): seed of every random choice.
    """

    name: ClassVar[str]

    seed: int = field(default=0, kw_only=True, metadata={"help": "Seed of every random choice."})

    @abstractmethod
    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        """Make a search of one bin with these settings."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine which candidates a search asks for."""
        return {"name": self.name, **vars(self)}

    def require_at_least(self, **least: int) -> None:
        """Raise `ValueError` for a setting below its least value, or a negative seed."""
        check_integers(self, {"seed": 0, **least})

    def require_shares(self, *names: str) -> None:
        """Raise `ValueError` for a setting outside of 0 to 1."""
        check_shares(self, *names)


def best(evaluations: Sequence[Evaluation], number: int) -> list[Evaluation]:
    """The evaluations of lowest fitness, the best first, each subnet once."""
    distinct = {evaluation.subnet: evaluation for evaluation in evaluations}
    return sorted(distinct.values(), key=lambda evaluation: evaluation.fitness)[:number]


class Breeder:
    """Draws, mutates and crosses over subnets in a bin, and gives each one once.

    Args:
        space (`SearchSpace`): space of the subnets.
        bin (`Bin`): bin that they must lie in.
        seed (`int`): seed of every random choice.
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
        """Mutate one of the parents with probability `mutation_rate`, else cross over two of them."""
        if self.rng.random() < mutation_rate or len(parents) < 2:
            return self.mutate(self.rng.choice(parents).subnet)
        first, second = self.rng.sample(parents, 2)
        return self.cross(first.subnet, second.subnet)

    def new(self, draw: Callable[[], Candidate]) -> Candidate | None:
        """Draw a new candidate, or sample one where `draw` gives only known ones; `None` if samples are known too."""
        for attempt in range(_ATTEMPTS):
            candidate = draw() if attempt < _ATTEMPTS // 2 else self.sample()
            if candidate.subnet.digest not in self._known:
                self._known.add(candidate.subnet.digest)
                return candidate
        return None

    def first_new(self, candidates: Sequence[Candidate], size: int) -> list[Candidate]:
        """The first `size` new ones of these candidates, and samples where there are too few."""
        batch: list[Candidate] = []
        for candidate in candidates:
            if len(batch) < size and candidate.subnet.digest not in self._known:
                self._known.add(candidate.subnet.digest)
                batch.append(candidate)
        return batch + self.batch(size - len(batch), self.sample)

    def batch(self, size: int, draw: Callable[[], Candidate]) -> list[Candidate]:
        """Draw at most `size` new candidates."""
        return [candidate for _ in range(size) if (candidate := self.new(draw)) is not None]


@dataclass
class BudgetedConfig(SearchConfig):
    """Settings of a search that ends after a number of evaluations."""

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})


class BudgetedSearch(SearchAlgorithm):
    """A search that ends after `evaluations` candidates, or when its space has no more to give.

    Args:
        space (`SearchSpace`): space to search.
        bin (`Bin`): bin that the subnets must lie in.
        config (`BudgetedConfig`): settings.
    """

    config: BudgetedConfig

    def __init__(self, space: SearchSpace, bin: Bin, config: BudgetedConfig):
        self.config = config
        self._breeder = Breeder(space, bin, config.seed)
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        left = self.config.evaluations - self._asked
        batch = self._next(left) if left else []
        self._asked += len(batch)
        return batch

    @abstractmethod
    def _next(self, most: int) -> list[Candidate]:
        """Give the next batch, of at most `most` candidates."""
