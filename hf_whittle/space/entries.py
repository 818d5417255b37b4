"""Kept entries of a dimension: draw them, keep more or fewer, exchange some."""

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..architectures.dimensions import LAYERS, VOCABULARY, Dimension
from ..kept import Ascending, Kept, canonical
from ..subnet import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..importance.scores import ImportanceScores


class Entries(Protocol):
    """A way to choose among the `total` entries of a dimension."""

    total: int

    def choose(self, rng: Random, size: int) -> Kept:
        """Draw `size` entries."""

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        """Leave out some of the `kept` entries, or add others, so that `size` are kept."""

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        """Replace one to a quarter of the entries by others."""


class FirstEntries:
    """Keep the first entries of a dimension, as a coarse space does."""

    def __init__(self, total: int):
        self.total = total

    def choose(self, rng: Random, size: int) -> Kept:
        return size

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        return size

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        return kept


class AnyEntries:
    """Keep any entries of a dimension, as a fine-grained space does.

    With scores, entries are ordered by `rank / total` of their score, where the best has 1, plus `temperature` times
    Gumbel noise, drawn anew each time. The first in this order are kept or added, the last are left out. With
    `temperature=0` these are the most important entries; the higher the temperature, the closer to the uniform draw
    that is made without scores.

    Args:
        total (`int`): number of entries of the dimension.
        scores (`Sequence[float]`, *optional*): importance of each entry.
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
        return self._ascending(self._best(rng, np.arange(self.total), size))

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        present = _array(kept)
        if size == len(present):
            return kept
        if size < len(present):
            return self._ascending(self._best(rng, present, size))
        return self._ascending(np.concatenate([present, self._best(rng, self._absent(present), size - len(present))]))

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        present = _array(kept)
        absent = self._absent(present)
        number = min(rng.randint(1, max(1, len(present) // 4)), len(absent))
        stay = self._best(rng, present, len(present) - number)
        return self._ascending(np.concatenate([stay, self._best(rng, absent, number)]))

    def _ascending(self, entries: np.ndarray) -> Kept:
        return _where(_mask(self.total, entries))

    def _absent(self, present: np.ndarray) -> np.ndarray:
        return np.flatnonzero(~_mask(self.total, present))

    def _best(self, rng: Random, entries: np.ndarray, size: int) -> np.ndarray:
        """Draw `size` of these entries: those of the best noisy scores, or uniformly if there are no scores."""
        if size >= len(entries) or size == 0:
            return entries[:size]
        noise = np.random.default_rng(rng.getrandbits(64)).random(len(entries))
        if self._ranks is None:
            return entries[np.argpartition(noise, size)[:size]]
        gumbel = -np.log(-np.log(noise + 2.0**-54))
        noisy = self._ranks[entries] + self._temperature * gumbel
        return entries[np.argpartition(-noisy, size)[:size]]


class Units:
    """Keep whole units of neighbouring entries, such as rotary pairs.

    Args:
        entries (`Entries`): a way to choose among the units.
        unit (`int`): number of entries of a unit.
    """

    def __init__(self, entries: Entries, unit: int):
        self.total = entries.total * unit
        self._entries, self._unit = entries, unit

    def choose(self, rng: Random, size: int) -> Kept:
        return self._expanded(self._entries.choose(rng, size // self._unit))

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        return self._expanded(self._entries.resize(rng, self._units(kept), size // self._unit))

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        return self._expanded(self._entries.exchange(rng, self._units(kept)))

    def _units(self, kept: Kept) -> Kept:
        return _where(_mask(self._entries.total, _array(kept)[:: self._unit] // self._unit))

    def _expanded(self, units: Kept) -> Kept:
        return _where(_mask(self._entries.total, _array(units)).repeat(self._unit))


class FirstTokens:
    """Keep the tokens that come first in an order, every prefix of which is a vocabulary that a tokenizer can have.

    Args:
        total (`int`): number of tokens.
        order (`Sequence[int]`, *optional*): tokens, the ones to keep first; by default in the order of their ids.
    """

    def __init__(self, total: int, order: Sequence[int] | None = None):
        self.total, self._order = total, order
        self._known: dict[int, Kept] = {}

    def choose(self, rng: Random | None, size: int) -> Kept:
        if self._order is None or size == self.total:
            return size
        if size not in self._known:
            self._known[size] = canonical(Ascending(sorted(self._order[:size])), VOCABULARY.name)
        return self._known[size]

    def resize(self, rng: Random, kept: Kept, size: int) -> Kept:
        return self.choose(rng, size)

    def exchange(self, rng: Random, kept: Kept) -> Kept:
        return kept


class Choices:
    """Ways to choose entries of every dimension of a super-network.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network.
        granularity (`str`): `"coarse"` or `"fine"`.
        importance (`ImportanceScores`, *optional*): scores by which fine-grained entries are chosen.
        temperature (`float`, *optional*, defaults to 0.1): how far a choice may stray from the scores.
        tokens (`FirstTokens`, *optional*): the way to choose tokens; the first ones by default.
    """

    def __init__(
        self,
        config: "PreTrainedConfig",
        granularity: Literal["coarse", "fine"],
        importance: "ImportanceScores | None" = None,
        temperature: float = 0.1,
        tokens: FirstTokens | None = None,
    ):
        self._granularity, self._temperature = granularity, temperature
        full = Shape.from_config(config)
        self._of_model: dict[Dimension, Entries] = {
            LAYERS: self._some(LAYERS, full.num_hidden_layers, importance and importance.layers),
            VOCABULARY: tokens or FirstTokens(full.size(VOCABULARY)),
        }
        self._of_layers: dict[Dimension, list[Entries]] = {}
        for dimension in full.dimensions:
            if dimension is VOCABULARY:
                continue
            total, scores = full.size(dimension), importance and importance.of(dimension)
            if dimension.per_layer:
                self._of_layers[dimension] = self._by_layer(dimension, full.num_hidden_layers, total, scores)
            else:
                self._of_model[dimension] = self._some(dimension, total, scores)

    def of(self, dimension: Dimension, layer: int | None = None) -> Entries:
        """Get the way to choose entries of one dimension.

        Args:
            dimension (`Dimension`): one that the architecture has.
            layer (`int`, *optional*): layer whose entries they are, if layers have entries of their own; by default,
                the same are chosen for all layers.
        """
        if dimension.per_layer:
            return self._of_layers[dimension][-1 if layer is None else layer]
        return self._of_model[dimension]

    def _by_layer(self, dimension: Dimension, layers: int, total: int, scores: Any = None) -> list[Entries]:
        """Choices for each layer; the last one, by mean rank, for all layers alike."""
        if scores is None:
            return [self._some(dimension, total)] * (layers + 1)
        stacked = np.stack(scores)
        mean_rank = -(-stacked).argsort(1, kind="stable").argsort(1).mean(0)  # 0 for the best
        return [self._some(dimension, total, of_layer) for of_layer in (*stacked, mean_rank)]

    def _some(self, dimension: Dimension, total: int, scores: Any = None) -> Entries:
        if self._granularity == "coarse":
            return FirstEntries(total)
        if dimension.unit == 1:
            return AnyEntries(total, scores, self._temperature)
        units = total // dimension.unit  # heads of an odd size are kept whole
        of_units = None if scores is None else np.reshape(scores[: units * dimension.unit], (units, -1)).mean(1)
        return Units(AnyEntries(units, of_units, self._temperature), dimension.unit)


def _array(kept: Kept) -> np.ndarray:
    return np.arange(kept) if isinstance(kept, int) else np.asarray(kept)


def _mask(total: int, entries: np.ndarray) -> np.ndarray:
    """A mask of `total` entries in which these are true."""
    mask = np.zeros(total, dtype=bool)
    mask[entries] = True
    return mask


def _where(mask: np.ndarray) -> Kept:
    """Indices of the true entries of a mask."""
    return Ascending(_numbers(len(mask))[mask].tolist())


@lru_cache
def _numbers(total: int) -> np.ndarray:
    """Numbers below `total` as Python objects, which subnets share: to make them anew takes most of a draw's time."""
    return np.arange(total).astype(object)
