"""Random search, the control of every other; stratified, it spreads over the bin."""

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

from ...cost.bins import Bin
from ...errors import BinError
from ...space.search_space import SearchSpace
from ..algorithm import Breeder, Candidate, Evaluation, SearchAlgorithm, SearchConfig


@dataclass
class RandomSearchConfig(SearchConfig):
    """How random search runs: independent draws of the space's sampler, in `strata` equal parts of the bin in turn."""

    name: ClassVar[str] = "random"

    evaluations: int = field(default=5050, metadata={"help": "Candidates to evaluate."})
    num_draws: int = field(default=50, metadata={"help": "Candidates drawn at a time."})
    strata: int = field(default=1, metadata={"help": "Equal parts of the bin, each of which gets as many candidates."})

    def __post_init__(self) -> None:
        self.require_at_least(evaluations=1, num_draws=1, strata=1)

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return RandomSearch(space, bin, self)


class RandomSearch(SearchAlgorithm):
    """Draws of the space's sampler, none of them twice."""

    def __init__(self, space: SearchSpace, bin: Bin, config: RandomSearchConfig):
        self.config = config
        strata = [stratum for stratum in split_bin(space, bin, config.strata) if _is_reachable(space, stratum)]
        if not strata:
            space.reachable_pairs(bin)  # says why
        self._breeders = deque(Breeder(space, stratum, config.seed + i) for i, stratum in enumerate(strata))
        self._asked = 0

    @property
    def max_evaluations(self) -> int:
        return self.config.evaluations

    def ask(self) -> list[Candidate]:
        batch: list[Candidate] = []
        while self._breeders and len(batch) < self.config.num_draws and self._asked < self.config.evaluations:
            breeder = self._breeders.popleft()
            candidate = breeder.new(breeder.sample)
            if candidate is not None:  # else it has no more to give
                batch.append(candidate)
                self._asked += 1
                self._breeders.append(breeder)
        return batch

    def tell(self, evaluations: list[Evaluation]) -> None:
        """Random search learns nothing."""


def split_bin(space: SearchSpace, bin: Bin, parts: int) -> list[Bin]:
    """Equal parts of what a space reaches of a bin; they do not overlap but for their ends."""
    if parts == 1:
        return [bin]
    least, most = space.reachable_costs(bin.cost(space.config))
    low, high = max(bin.low, least), min(bin.high, most)
    width = max(high - low, 0) / parts
    ends = [low + i * width for i in range(parts)] + [max(high, low)]
    return [replace(bin, low=first, high=second) for first, second in pairwise(ends)]


def _is_reachable(space: SearchSpace, bin: Bin) -> bool:
    try:
        space.reachable_pairs(bin)
    except BinError:
        return False
    return True
