"""Which entries of a dimension are kept: draw them, keep more or fewer, exchange some."""

import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol

from .subnet import Kept, count, indices


class Entries(Protocol):
    """How entries of a dimension with `total` of them are chosen."""

    total: int

    def choose(self, rng: Random, size: int) -> Kept:
        """Draw `size` entries."""

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        """Keep `size` entries: leave out some of `kept`, or add some."""

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        """Replace one to a quarter of the entries by others."""


class FirstEntries:
    """The first entries of a dimension: a coarse space."""

    def __init__(self, total: int):
        self.total = total

    def choose(self, rng: Random, size: int) -> Kept:
        return size

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        return size

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        return kept


class AnyEntries:
    """Any entries of a dimension: a fine-grained space.

    Args:
        total (`int`): entries of the dimension.
        scores (`Sequence[float]`, *optional*): importance of each. Entries are then ordered by `rank / total` of their
            score, 1 the best, plus `temperature` times Gumbel noise, drawn anew each time: the first in this order
            are kept or added, the last left out. So `temperature=0` keeps the most important ones, and a large one is
            the uniform draw that is made without scores.
        temperature (`float`, *optional*, defaults to 0.1): how far a draw may stray from the scores.
    """

    def __init__(self, total: int, scores: Sequence[float] | None = None, temperature: float = 0.1):
        self.total = total
        self._ranks: list[float] | None = None
        self._temperature = temperature
        if scores is not None:
            ascending = sorted(range(total), key=lambda entry: (scores[entry], -entry))
            self._ranks = [0.0] * total
            for rank, entry in enumerate(ascending):
                self._ranks[entry] = (rank + 1) / total

    def choose(self, rng: Random, size: int) -> Kept:
        return tuple(sorted(self._best(rng, range(self.total), size)))

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        present = indices(kept)
        if size <= len(present):
            return kept if size == len(present) else tuple(sorted(self._best(rng, present, size)))
        return tuple(sorted((*present, *self._best(rng, self._absent(present), size - len(present)))))

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        present = indices(kept)
        absent = self._absent(present)
        number = min(rng.randint(1, max(1, count(kept) // 4)), len(absent))
        stay = self._best(rng, present, len(present) - number)
        return tuple(sorted((*stay, *self._best(rng, absent, number))))

    def _absent(self, present: Iterable[int]) -> list[int]:
        return sorted(set(range(self.total)).difference(present))

    def _best(self, rng: Random, entries: Sequence[int], size: int) -> list[int]:
        """The first `size` of these in the order of their scores, or any if there are none."""
        if self._ranks is None:
            return rng.sample(entries, size)
        ranks = self._ranks
        noisy = {entry: ranks[entry] + self._temperature * _gumbel(rng) for entry in entries}
        return sorted(entries, key=noisy.__getitem__, reverse=True)[:size]


def _gumbel(rng: Random) -> float:
    return -math.log(-math.log(rng.random() or 0.5))
