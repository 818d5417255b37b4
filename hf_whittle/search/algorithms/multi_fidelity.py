"""Multi-fidelity evolution (EvoPress, arXiv 2410.14649): many offspring on few tokens, the best of them on more."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

from ...cost.bins import Bin
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig, best


@dataclass
class MultiFidelityConfig(SearchConfig):
    """Settings of multi-fidelity evolution.

    In each generation `sizes[0]` offspring are evaluated on `shares[0]` of the tokens, the best `sizes[1]` of them on
    `shares[1]`, and so on; those that reach the last share, 1, may become elites. The first generation takes
    `initial` times as many, drawn at random.

    Raises:
        ValueError: if a setting is out of range.
    """

    name: ClassVar[str] = "multi-fidelity"

    generations: int = field(default=40, metadata={"help": "Generations after the first."})
    shares: list[float] = field(
        default_factory=lambda: [0.0625, 0.25, 1.0], metadata={"help": "Shares of the tokens, ascending to 1."}
    )
    sizes: list[int] = field(
        default_factory=lambda: [32, 8, 2], metadata={"help": "Candidates evaluated on each share, descending."}
    )
    initial: int = field(default=4, metadata={"help": "Size of the first generation, as a multiple of `sizes`."})
    num_elites: int = field(default=4, metadata={"help": "Best candidates so far that become parents."})
    mutation_rate: float = field(default=0.5, metadata={"help": "Share of offspring made by mutation, not crossover."})

    def __post_init__(self) -> None:
        self.require_at_least(generations=0, initial=1, num_elites=1)
        self.require_shares("mutation_rate")
        self.shares, self.sizes = list(self.shares), list(self.sizes)
        if not self._are_ascending():
            raise ValueError(f"shares must ascend from above 0 to 1, got {self.shares}")
        if len(self.sizes) != len(self.shares) or not self._are_descending():
            raise ValueError(f"sizes must have {len(self.shares)} descending numbers from 1, got {self.sizes}")

    def _are_ascending(self) -> bool:
        are_shares = all(0 < share <= 1 for share in self.shares)
        return are_shares and self.shares[-1:] == [1] and sorted(set(self.shares)) == self.shares

    def _are_descending(self) -> bool:
        are_whole = all(isinstance(size, Integral) and size >= 1 for size in self.sizes)
        return are_whole and sorted(self.sizes, reverse=True) == self.sizes

    def algorithm(self, space: SearchSpace, bin: Bin) -> "MultiFidelitySearch":
        return MultiFidelitySearch(space, bin, self)


class MultiFidelitySearch(SearchAlgorithm):
    """Evolution that evaluates the best of each generation on ever more tokens."""

    def __init__(self, space: SearchSpace, bin: Bin, config: MultiFidelityConfig):
        self.space, self.bin, self.config = space, bin, config
        self._breeder = Breeder(space, bin, config.seed)
        self._elites: list[Evaluation] = []
        self._generation = self._rung = 0
        self._survivors: Sequence[Candidate] = ()

    @property
    def max_evaluations(self) -> int:
        return sum(self.config.sizes) * (self.config.generations + self.config.initial)

    def ask(self) -> list[Candidate]:
        if self._rung == 0:
            if self._generation > self.config.generations:
                return []
            self._survivors = self._bred() if self._generation else self._drawn()
        share = self.config.shares[self._rung]
        return [Candidate(c.subnet, c.origin, c.parents, share) for c in self._survivors]

    def tell(self, evaluations: list[Evaluation]) -> None:
        ranked = sorted(zip(evaluations, self._survivors, strict=True), key=lambda pair: pair[0].fitness)
        self._rung += 1
        if self._rung < len(self.config.shares):
            scale = 1 if self._generation else self.config.initial
            self._survivors = [candidate for _, candidate in ranked[: self.config.sizes[self._rung] * scale]]
            return
        self.inform([evaluation for evaluation, _ in ranked])
        self._generation, self._rung = self._generation + 1, 0

    def inform(self, evaluations: list[Evaluation]) -> None:
        full = [evaluation for evaluation in evaluations if evaluation.share == 1]
        self._elites = best([*self._elites, *full], self.config.num_elites)

    def begin_from(self, evaluations: list[Evaluation]) -> None:
        """Start from these elites instead of random draws."""
        self.inform(evaluations)
        self._generation = 1

    def _drawn(self) -> list[Candidate]:
        return self._breeder.batch(self.config.sizes[0] * self.config.initial, self._breeder.sample)

    def _bred(self) -> list[Candidate]:
        def breed() -> Candidate:
            return self._breeder.breed(self._elites, self.config.mutation_rate)

        return self._breeder.batch(self.config.sizes[0], breed)
