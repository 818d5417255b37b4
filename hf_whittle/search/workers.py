"""Evaluate a batch of candidates, on one process or spread over all that were launched."""

import math
from collections.abc import Callable, Iterator, Sequence

from ..errors import WhittleError
from ..processes import launched_processes
from ..subnet import SubnetConfig
from .algorithm import Candidate

_AT_A_TIME = 16  # candidates of a process between two exchanges: what a kill can lose


class Workers:
    """The processes that evaluate. Every one runs the same search; the first one writes the files.

    Args:
        fitness (`Callable`): what to minimise.
    """

    def __init__(self, fitness: Callable[..., float]):
        self._fitness = fitness
        self._state = launched_processes()

    @property
    def is_main(self) -> bool:
        return self._state is None or self._state.is_main_process

    def evaluate(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, float]]:
        """Fitness of each candidate, in their order, as soon as it is there.

        Candidates are spread over the processes, unless all of these must run a sharded model together.
        """
        if self._state is None or getattr(self._fitness, "is_sharded", False):
            for candidate in candidates:
                yield candidate, self._value(candidate)
            return
        processes, own = self._state.num_processes, self._state.process_index
        for start in range(0, len(candidates), _AT_A_TIME * processes):
            together = candidates[start : start + _AT_A_TIME * processes]
            yield from zip(together, self._exchange(together[own::processes], len(together)), strict=True)

    def _exchange(self, own: Sequence[Candidate], total: int) -> list[float]:
        """Evaluate this process' candidates and collect those of all; an error in one is an error in all."""
        from accelerate.utils import gather_object

        error = None
        values = []
        try:
            values = [self._value(candidate) for candidate in own]
        except Exception as caught:
            error = caught
        gathered = gather_object([(values, None if error is None else f"{type(error).__name__}: {error}")])
        if error is not None:
            raise error
        for index, (_, failure) in enumerate(gathered):
            if failure is not None:
                raise WhittleError(f"process {index} could not evaluate its candidates: {failure}")
        processes = len(gathered)
        return [gathered[i % processes][0][i // processes] for i in range(total)]

    def _value(self, candidate: Candidate) -> float:
        try:
            value = float(evaluate(self._fitness, candidate.subnet, candidate.share))
        except (OverflowError, FloatingPointError):
            return math.inf
        return value if math.isfinite(value) else math.inf


def evaluate(fitness: Callable[..., float], subnet: SubnetConfig, share: float) -> float:
    """Call a fitness, which needs to know of shares only where it is evaluated on one."""
    return fitness(subnet) if share == 1 else fitness(subnet, share)
