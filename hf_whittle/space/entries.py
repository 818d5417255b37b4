"""Which entries of a dimension are kept: draw them, keep more or fewer, exchange some."""

from collections.abc import Sequence
from random import Random
from typing import Protocol

import numpy as np

from ..subnet import Ascending, Kept


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
        self._ranks: np.ndarray | None = None
        self._temperature = temperature
        if scores is not None:
            descending = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
            self._ranks = np.empty(total)
            self._ranks[descending] = np.arange(total, 0, -1) / total

    def choose(self, rng: Random, size: int) -> Kept:
        return _ascending(self._best(rng, np.arange(self.total), size))

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        present = _array(kept)
        if size == len(present):
            return kept
        if size < len(present):
            return _ascending(self._best(rng, present, size))
        return _ascending(np.concatenate([present, self._best(rng, self._absent(present), size - len(present))]))

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        present = _array(kept)
        absent = self._absent(present)
        number = min(rng.randint(1, max(1, len(present) // 4)), len(absent))
        stay = self._best(rng, present, len(present) - number)
        return _ascending(np.concatenate([stay, self._best(rng, absent, number)]))

    def _absent(self, present: np.ndarray) -> np.ndarray:
        absent = np.ones(self.total, dtype=bool)
        absent[present] = False
        return np.flatnonzero(absent)

    def _best(self, rng: Random, entries: np.ndarray, size: int) -> np.ndarray:
        """The first `size` of these in the order of their noisy scores, or any if there are none."""
        if size >= len(entries) or size == 0:
            return entries[:size]
        noise = np.random.default_rng(rng.getrandbits(64)).random(len(entries))
        if self._ranks is None:
            return entries[np.argpartition(noise, size)[:size]]
        gumbel = -np.log(-np.log(noise + 2.0**-54))
        noisy = self._ranks[entries] + self._temperature * gumbel
        return entries[np.argpartition(-noisy, size)[:size]]


def _array(kept: Kept) -> np.ndarray:
    return np.arange(kept) if isinstance(kept, int) else np.asarray(kept)


def _ascending(entries: np.ndarray) -> Kept:
    return Ascending(np.sort(entries).tolist())
