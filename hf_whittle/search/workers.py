"""Evaluate a batch of candidates on one process, or spread over all launched processes."""

import math
from collections.abc import Callable, Iterator, Sequence

from ..errors import WhittleError
from ..processes import launched_processes
from .algorithm import Candidate

_AT_A_TIME = 16  # candidates of a process between two exchanges, which a kill can lose


class Workers:
    """The processes that evaluate candidates. Each runs the same search; the first one writes the files.

    Args:
        fitness (`Callable`): function to minimize.
    """

    def __init__(self, fitness: Callable[..., float]):
        self._fitness = fitness
        self._state = launched_processes()

    @property
    def is_main(self) -> bool:
        return self._state is None or self._state.is_main_process

    def evaluate(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, float]]:
        """Yield each candidate with its fitness, in their order, as soon as it is known.

        Candidates are spread over the processes, unless a sharded model needs all processes for each candidate.
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
        """Evaluate the candidates of this process and gather the values of all; an error in one is raised in all."""
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
        share = () if candidate.share == 1 else (candidate.share,)  # not every fitness takes one
        try:
            value = float(self._fitness(candidate.subnet, *share))
        except (OverflowError, FloatingPointError):
            return math.inf
        return value if math.isfinite(value) else math.inf
