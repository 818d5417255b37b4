"""Draw, mutate and cross over subnets so that they lie in a bin by construction.

No subnet is drawn to be thrown away. Every move ends in the same three steps: choose shared sizes and a number of
layers for which the bin is reachable; choose totals of the dimensions of layers that lie in it (`reach.py`); spread the
totals over the layers.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np

from ..architectures.dimensions import LAYERS, VOCABULARY, Dimension
from ..subnet import Kept, SubnetConfig, count, indices
from .entries import Choices, Entries
from .reach import Reach
from .sizes import Frame, Sizes


class Draft:
    """A subnet in the making: what it keeps of each dimension that subnets of its space name.

    Args:
        space (`Sizes`): the space.
        kept (`dict[Dimension, Any]`, *optional*): kept entries, a list of them by layer for a dimension of layers.
    """

    def __init__(self, space: Sizes, kept: dict[Dimension, Any] | None = None):
        self.space, self.kept = space, kept or {}

    @classmethod
    def of(cls, space: Sizes, subnet: SubnetConfig) -> "Draft":
        kept: dict[Dimension, Any] = {}
        for dimension in space.named:
            entries = subnet.kept(dimension)
            if entries is None:
                entries = space.full.size(dimension)
            kept[dimension] = list(entries) if dimension.per_layer else entries
        return cls(space, kept)

    def subnet(self) -> SubnetConfig:
        """The subnet, which does not name the vocabulary if that is whole."""
        named = {d.name: tuple(kept) if d.per_layer else kept for d, kept in self.kept.items()}
        if named.get(VOCABULARY.name) == self.space.full.vocab_size:
            del named[VOCABULARY.name]
        return SubnetConfig(**named)

    @property
    def layers(self) -> Kept:
        return self.kept[LAYERS]

    @property
    def frame(self) -> Frame:
        """Sizes of the shared dimensions."""
        space = self.space
        return tuple(count(self.kept[d]) if d in self.kept else space.full.size(d) for d in space.architecture.shared)

    def by_layer(self, dimension: Dimension) -> dict[int, Kept]:
        """Kept entries of each kept layer."""
        return dict(zip(indices(self.layers), self.kept[dimension], strict=True))


class Moves:
    """Moves within one bin of a space, whose laws `SearchSpace` documents.

    Args:
        reach (`Reach`): sizes that lie in the bin.
        choices (`Choices`): ways to choose entries of each dimension.
        rng (`random.Random`): source of every random choice.
    """

    def __init__(self, reach: Reach, choices: Choices, rng: Random):
        self.reach, self.choices, self.rng = reach, choices, rng
        self.space = reach.space
        self._shared, self._per_layer = self.space.architecture.shared, self.space.architecture.per_layer
        self._whole = tuple(d for d in self.space.named if not d.per_layer)  # the layers among them

    def sample(self) -> SubnetConfig:
        rng, reach = self.rng, self.reach
        frame, layers = rng.choice(reach.pairs)
        sizes = {LAYERS: layers, **dict(zip(self._shared, frame, strict=True))}
        draft = Draft(self.space, {d: self.choices.of(d).choose(rng, sizes[d]) for d in self._whole})
        possible = reach.totals(frame, layers)
        totals = possible[rng.randrange(len(possible))].tolist()
        low, high = reach.last_totals(frame, layers, totals)
        totals.append(rng.randrange(low, high + 1, reach.step(layers)))
        for dimension, total in zip(self._per_layer, totals, strict=True):
            draft.kept[dimension] = self._draw(dimension, total, draft.layers)
        return draft.subnet()

    def mutate(self, subnet: SubnetConfig) -> SubnetConfig:
        draft, space = Draft.of(self.space, subnet), self.space
        changes: list[Callable[[Draft], None]] = [
            partial(self._change_size, dimension=dimension)
            for dimension in space.named
            if not dimension.is_optional or len(space.sizes(dimension)) > 1
        ]
        if space.granularity == "fine":
            changes.append(self._exchange_entries)
        self.rng.choice(changes)(draft)
        return self._settle(draft)

    def crossover(self, first: SubnetConfig, second: SubnetConfig) -> SubnetConfig:
        a, b = Draft.of(self.space, first), Draft.of(self.space, second)
        child = Draft(self.space, {d: self.rng.choice((a.kept[d], b.kept[d])) for d in self._whole})
        for dimension in self._per_layer:
            child.kept[dimension] = self._inherit(dimension, a, b, child.layers)
        return self._settle(child)

    def _inherit(self, dimension: Dimension, a: Draft, b: Draft, layers: Kept) -> list[Kept]:
        """Entries of each kept layer from a parent that keeps it; in a uniform space, all from one parent."""
        if not self.space.layer_wise:
            return [self.rng.choice((a.kept[dimension], b.kept[dimension]))[0]] * count(layers)
        parents = a.by_layer(dimension), b.by_layer(dimension)
        return [self.rng.choice([p[layer] for p in parents if layer in p]) for layer in indices(layers)]

    # Changes of a draft

    def _change_size(self, draft: Draft, dimension: Dimension) -> None:
        """Draw another size of a dimension; of one that layers have of their own, as `_change_layer` does."""
        if dimension.per_layer:
            rng, sizes = self.rng, self.space.sizes(dimension)
            self._change_layer(draft, dimension, lambda entries, kept: entries.resize(rng, kept, rng.choice(sizes)))
            return
        frame, layers, own = draft.frame, count(draft.layers), count(draft.kept[dimension])
        if dimension is LAYERS:
            others = [size for size in self.space.num_hidden_layers if self.reach.holds(frame, size)]
        else:
            i, sizes = self._shared.index(dimension), self.space.sizes(dimension)
            others = [size for size in sizes if self.reach.holds((*frame[:i], size, *frame[i + 1 :]), layers)]
        others = [size for size in others if size != own]
        if others:
            self._keep(draft, dimension, self._resize(dimension, draft.kept[dimension], _nearby(self.rng, others, own)))

    def _keep(self, draft: Draft, dimension: Dimension, kept: Kept) -> None:
        """Keep other entries; an added layer takes the entries of a layer that was kept before."""
        if dimension is LAYERS:
            for of_layers in self._per_layer:
                before = draft.by_layer(of_layers)
                entries = list(before.values())
                draft.kept[of_layers] = [before[i] if i in before else self.rng.choice(entries) for i in indices(kept)]
        draft.kept[dimension] = kept

    def _exchange_entries(self, draft: Draft) -> None:
        """Replace some kept entries of one dimension by as many others."""
        dimension = self.rng.choice([d for d in self.space.named if d is not VOCABULARY])
        if dimension.per_layer:
            self._change_layer(draft, dimension, lambda entries, kept: entries.exchange(self.rng, kept))
        else:
            kept = draft.kept[dimension]
            self._keep(draft, dimension, self.choices.of(dimension).exchange(self.rng, kept))

    def _change_layer(self, draft: Draft, dimension: Dimension, change: Callable[[Entries, Kept], Kept]) -> None:
        """Change the entries of one layer, or of all in a uniform space."""
        kept = draft.kept[dimension]
        if self.space.layer_wise:
            position = self.rng.randrange(len(kept))
            kept[position] = change(self.choices.of(dimension, indices(draft.layers)[position]), kept[position])
        else:
            kept[:] = [change(self.choices.of(dimension), kept[0])] * len(kept)

    # Into the bin

    def _settle(self, draft: Draft) -> SubnetConfig:
        """Move a draft into the bin in the smallest steps: shared sizes and layers first, then totals over layers."""
        frame, layers = self._nearest_pair(draft)
        for dimension, size in zip(self._shared, frame, strict=True):
            if dimension in draft.kept:
                draft.kept[dimension] = self._resize(dimension, draft.kept[dimension], size)
        if layers != count(draft.layers):
            self._keep(draft, LAYERS, self._resize(LAYERS, draft.layers, layers))
        own = [sum(map(count, draft.kept[dimension])) for dimension in self._per_layer]
        possible = self.reach.totals(frame, layers)
        totals = possible[np.abs(possible - own[:-1]).sum(1).argmin()].tolist()
        low, high = self.reach.last_totals(frame, layers, totals)
        totals.append(min(max(own[-1], low), high))
        for dimension, total in zip(self._per_layer, totals, strict=True):
            draft.kept[dimension] = self._spread(dimension, draft.kept[dimension], total, draft.layers)
        return draft.subnet()

    def _nearest_pair(self, draft: Draft) -> tuple[Frame, int]:
        """The draft's own shared sizes and number of layers if the bin is reachable with them, else the nearest."""
        own, own_layers = draft.frame, count(draft.layers)
        if self.reach.holds(own, own_layers):
            return own, own_layers

        def distance(pair: tuple[Frame, int]) -> tuple[int, ...]:
            frame, layers = pair
            return abs(layers - own_layers), *[abs(size - mine) for size, mine in zip(frame, own, strict=True)]

        return min(self.reach.pairs, key=distance)

    def _resize(self, dimension: Dimension, kept: Kept, size: int) -> Kept:
        return self.choices.of(dimension).resize(self.rng, kept, size)

    def _draw(self, dimension: Dimension, total: int, layers: Kept) -> list[Kept]:
        """Draw kept entries of each layer that add up to a total."""
        if not self.space.layer_wise:
            return [self.choices.of(dimension).choose(self.rng, total // count(layers))] * count(layers)
        sizes = self.space.sizes(dimension)
        corrected = _correct(self.rng, [self.rng.choice(sizes) for _ in range(count(layers))], total, sizes)
        pairs = zip(indices(layers), corrected, strict=True)
        return [self.choices.of(dimension, layer).choose(self.rng, size) for layer, size in pairs]

    def _spread(self, dimension: Dimension, kept: list[Kept], total: int, layers: Kept) -> list[Kept]:
        """Resize the kept entries of the layers so that they add up to a total."""
        if not self.space.layer_wise:
            return [self._resize(dimension, kept[0], total // len(kept))] * len(kept)
        corrected = _correct(self.rng, [count(entry) for entry in kept], total, self.space.sizes(dimension))
        changes = zip(indices(layers), kept, corrected, strict=True)
        return [self.choices.of(dimension, layer).resize(self.rng, entry, size) for layer, entry, size in changes]


def _nearby(rng: Random, sizes: list[int], size: int) -> int:
    """Draw one of the sizes; the probability falls with the rank of its distance from `size`."""
    ranked = sorted(sizes, key=lambda other: (abs(other - size), other))
    return ranked[min(int(rng.expovariate(0.5)), len(ranked) - 1)]


def _correct(rng: Random, drawn: list[int], total: int, sizes: range) -> list[int]:
    """Change sizes, in a random order of the layers and within their range, so that they add up to `total`."""
    corrected = list(drawn)
    difference = total - sum(corrected)
    for position in rng.sample(range(len(corrected)), len(corrected)):
        size = min(max(corrected[position] + difference, sizes[0]), sizes[-1])
        difference -= size - corrected[position]
        corrected[position] = size
    if difference:
        raise AssertionError(f"{total} cannot be the sum of {len(drawn)} sizes of {sizes}")
    return corrected
