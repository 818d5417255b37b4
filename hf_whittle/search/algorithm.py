"""The interface of a search algorithm: it is asked for candidates and told their fitness."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..subnet import SubnetConfig


@dataclass(frozen=True)
class Candidate:
    """A subnet to evaluate, and how it came about.

    Args:
        subnet (`SubnetConfig`): the subnet.
        origin (`str`): `"sample"`, `"mutation"` or `"crossover"`.
        parents (`tuple[str, ...]`): digests of the subnets it was made from.
    """

    subnet: SubnetConfig
    origin: str = "sample"
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A candidate and what was found out about it; fitness is minimised, infinite where evaluation failed."""

    subnet: SubnetConfig
    fitness: float
    parameters: int
    generation: int
    origin: str
    parents: tuple[str, ...]


class SearchAlgorithm(ABC):
    """A search: `ask` for a batch of candidates, evaluate them, `tell` their fitness, until `ask` gives none.

    An algorithm draws only on its own seed and on what it is told. A search is resumed by telling a new instance what
    is known already, so an algorithm needs no saved state.
    """

    @property
    @abstractmethod
    def max_evaluations(self) -> int:
        """The most candidates the search will ask to evaluate."""

    @abstractmethod
    def ask(self) -> list[Candidate]:
        """The next generation of candidates, none of which was asked for before; empty when the search is over."""

    @abstractmethod
    def tell(self, evaluations: list[Evaluation]) -> None:
        """Take in the evaluations of the candidates last asked for, in their order."""
