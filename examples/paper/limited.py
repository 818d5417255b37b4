"""A search that ends when it has spent some FLOPs."""

from dataclasses import dataclass
from typing import Any

from hf_whittle.cost.bins import Bin
from hf_whittle.search.algorithm import Candidate, Evaluation, SearchAlgorithm, SearchConfig
from hf_whittle.space.search_space import SearchSpace


@dataclass
class UpTo(SearchConfig):
    """A search that asks for no more candidates once those evaluated have spent some FLOPs."""

    name = "up to some FLOPs"

    search: SearchConfig
    flops: float

    def algorithm(self, space: SearchSpace, bin: Bin) -> SearchAlgorithm:
        return _UpTo(self.search.algorithm(space, bin), self.flops)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "search": self.search.settings, "flops": self.flops}


class _UpTo(SearchAlgorithm):
    def __init__(self, search: SearchAlgorithm, flops: float):
        self.search, self.left = search, flops

    @property
    def max_evaluations(self) -> int:
        return self.search.max_evaluations

    def ask(self) -> list[Candidate]:
        return self.search.ask() if self.left > 0 else []

    def tell(self, evaluations: list[Evaluation]) -> None:
        self.left -= sum(evaluation.flops for evaluation in evaluations)
        self.search.tell(evaluations)
