"""Evaluate a batch of candidates on one process, or spread over all launched processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import WhittleError
from ..processes import gathered, launched_processes
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

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise `WhittleError` in all processes if one has another search, or other text or weights to evaluate on."""
        found = gathered(settings)
        for index, others in enumerate(found):
            different = [name for name, value in found[0].items() if others[name] != value]
            if different:
                raise WhittleError(
                    f"process {index} searches with another {' and '.join(different)} than process 0; give all "
                    "processes the same space, bins, algorithm, text and model"
                )

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
            yield from zip(together, self._exchange(together, together[own::processes]), strict=True)

    def _exchange(self, together: Sequence[Candidate], own: Sequence[Candidate]) -> list[float]:
        """Evaluate the candidates of this process and gather the values of all; an error in one is raised in all."""
        error = None
        values = []
        try:
            values = [self._value(candidate) for candidate in own]
        except Exception as caught:
            error = caught
        keys = [candidate.key for candidate in together]
        found = gathered((values, None if error is None else f"{type(error).__name__}: {error}", keys))
        if error is not None:
            raise error
        for index, (_, failure, others) in enumerate(found):
            if failure is not None:
                raise WhittleError(f"process {index} could not evaluate its candidates: {failure}")
            if others != found[0][2]:
                raise WhittleError(
                    f"process {index} searches other subnets than process 0; give all processes the same space, "
                    "importance scores, algorithm and bins"
                )
        processes = len(found)
        return [found[i % processes][0][i // processes] for i in range(len(together))]

    def _value(self, candidate: Candidate) -> float:
        share = () if candidate.share == 1 else (candidate.share,)  # not every fitness takes one
        try:
            value = float(self._fitness(candidate.subnet, *share))
        except (OverflowError, FloatingPointError):
            return math.inf
        return value if math.isfinite(value) else math.inf
