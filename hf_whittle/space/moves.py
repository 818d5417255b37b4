"""Draw, mutate and cross over subnets so that they lie in a bin by construction.

No subnet is drawn to be thrown away. Every move ends in the same three steps: choose channels and layers for which the
bin is reachable; choose totals of heads and neurons that lie in it (`reach.py`); spread the totals over the layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from ..subnet import Kept, SubnetConfig, count, indices
from .entries import Choices, Entries
from .reach import Reach


@dataclass
class Draft:
    """A subnet in the making."""

    channels: Kept
    layers: Kept
    heads: list[Kept] = field(default_factory=list)
    neurons: list[Kept] = field(default_factory=list)

    @classmethod
    def of(cls, subnet: SubnetConfig) -> "Draft":
        heads, neurons = list(subnet.num_attention_heads), list(subnet.intermediate_size)
        return cls(subnet.hidden_size, subnet.num_hidden_layers, heads, neurons)

    def subnet(self) -> SubnetConfig:
        return SubnetConfig(self.channels, self.layers, tuple(self.heads), tuple(self.neurons))

    def by_layer(self, name: str) -> dict[int, Kept]:
        """Kept `"heads"` or `"neurons"` of each kept layer."""
        return dict(zip(indices(self.layers), getattr(self, name), strict=True))


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
        self._sizes = {"heads": self.space.num_attention_heads, "neurons": self.space.intermediate_size}

    def sample(self) -> SubnetConfig:
        rng = self.rng
        channels, layers = rng.choice(self.reach.pairs)
        draft = Draft(
            channels=self.choices.of("channels").choose(rng, channels),
            layers=self.choices.of("layers").choose(rng, layers),
        )
        heads = rng.choice(self.reach.head_totals(channels, layers))
        low, high = self.reach.neuron_totals(channels, layers, heads)
        neurons = rng.randrange(low, high + 1, self.reach.unit(layers) * self.space.intermediate_size.step)
        draft.heads = self._draw("heads", heads, draft.layers)
        draft.neurons = self._draw("neurons", neurons, draft.layers)
        return draft.subnet()

    def mutate(self, subnet: SubnetConfig) -> SubnetConfig:
        draft = Draft.of(subnet)
        changes: list[Callable[[Draft], None]] = [
            self._change_channels,
            self._change_layers,
            lambda draft: self._redraw_size(draft, "heads"),
            lambda draft: self._redraw_size(draft, "neurons"),
        ]
        if self.space.granularity == "fine":
            changes.append(self._exchange_entries)
        self.rng.choice(changes)(draft)
        return self._settle(draft)

    def crossover(self, first: SubnetConfig, second: SubnetConfig) -> SubnetConfig:
        a, b = Draft.of(first), Draft.of(second)
        child = Draft(self.rng.choice((a.channels, b.channels)), self.rng.choice((a.layers, b.layers)))
        child.heads = self._inherit("heads", a, b, child.layers)
        child.neurons = self._inherit("neurons", a, b, child.layers)
        return self._settle(child)

    def _inherit(self, name: str, a: Draft, b: Draft, layers: Kept) -> list[Kept]:
        """Heads or neurons of each kept layer from a parent that keeps it; in a uniform space, all from one parent."""
        if not self.space.layer_wise:
            return [self.rng.choice((getattr(a, name), getattr(b, name)))[0]] * count(layers)
        parents = a.by_layer(name), b.by_layer(name)
        return [self.rng.choice([p[layer] for p in parents if layer in p]) for layer in indices(layers)]

    # Changes of a draft

    def _change_channels(self, draft: Draft) -> None:
        own, layers = count(draft.channels), count(draft.layers)
        sizes = [c for c, n in self.reach.pairs if n == layers and c != own]
        if sizes:
            draft.channels = self._resize("channels", draft.channels, _nearby(self.rng, sizes, own))

    def _change_layers(self, draft: Draft) -> None:
        own, channels = count(draft.layers), count(draft.channels)
        sizes = [n for c, n in self.reach.pairs if c == channels and n != own]
        if sizes:
            self._keep_layers(draft, self._resize("layers", draft.layers, _nearby(self.rng, sizes, own)))

    def _keep_layers(self, draft: Draft, layers: Kept) -> None:
        """Keep other layers; an added one takes the heads and neurons of a layer that was kept before."""
        for name in ("heads", "neurons"):
            before = draft.by_layer(name)
            entries = list(before.values())
            kept = [before[i] if i in before else self.rng.choice(entries) for i in indices(layers)]
            setattr(draft, name, kept)
        draft.layers = layers

    def _redraw_size(self, draft: Draft, name: str) -> None:
        """Draw another number of heads or neurons for one layer, or for all in a uniform space."""
        rng, sizes = self.rng, self._sizes[name]
        self._change_layer(draft, name, lambda entries, kept: entries.resize(rng, kept, rng.choice(sizes)))

    def _exchange_entries(self, draft: Draft) -> None:
        """Replace some kept entries of one dimension by as many others."""
        name = self.rng.choice(("channels", "layers", "heads", "neurons"))
        if name == "channels":
            draft.channels = self.choices.of(name).exchange(self.rng, draft.channels)
        elif name == "layers":
            self._keep_layers(draft, self.choices.of(name).exchange(self.rng, draft.layers))
        else:
            self._change_layer(draft, name, lambda entries, kept: entries.exchange(self.rng, kept))

    def _change_layer(self, draft: Draft, name: str, change: Callable[[Entries, Kept], Kept]) -> None:
        """Change the heads or neurons of one layer, or of all in a uniform space."""
        kept = getattr(draft, name)
        if self.space.layer_wise:
            position = self.rng.randrange(len(kept))
            kept[position] = change(self.choices.of(name, indices(draft.layers)[position]), kept[position])
        else:
            kept[:] = [change(self.choices.of(name), kept[0])] * len(kept)

    # Into the bin

    def _settle(self, draft: Draft) -> SubnetConfig:
        """Move a draft into the bin in the smallest steps: channels and layers first, then totals of heads, neurons."""
        channels, layers = self._nearest_pair(draft)
        draft.channels = self._resize("channels", draft.channels, channels)
        if layers != count(draft.layers):
            self._keep_layers(draft, self._resize("layers", draft.layers, layers))
        totals = self.reach.head_totals(channels, layers)
        heads = min(totals, key=lambda total: abs(total - sum(map(count, draft.heads))))
        draft.heads = self._spread("heads", draft.heads, heads, draft.layers)
        low, high = self.reach.neuron_totals(channels, layers, heads)
        neurons = min(max(sum(map(count, draft.neurons)), low), high)
        draft.neurons = self._spread("neurons", draft.neurons, neurons, draft.layers)
        return draft.subnet()

    def _nearest_pair(self, draft: Draft) -> tuple[int, int]:
        """The draft's own numbers of channels and layers if the bin is reachable with them, else the nearest."""
        own = count(draft.channels), count(draft.layers)
        pairs = self.reach.pairs
        return own if own in pairs else min(pairs, key=lambda pair: (abs(pair[1] - own[1]), abs(pair[0] - own[0])))

    def _resize(self, name: str, kept: Kept, size: int) -> Kept:
        return self.choices.of(name).resize(self.rng, kept, size)

    def _draw(self, name: str, total: int, layers: Kept) -> list[Kept]:
        """Draw kept entries of each layer that add up to a total."""
        if not self.space.layer_wise:
            return [self.choices.of(name).choose(self.rng, total // count(layers))] * count(layers)
        sizes = self._sizes[name]
        corrected = _correct(self.rng, [self.rng.choice(sizes) for _ in range(count(layers))], total, sizes)
        pairs = zip(indices(layers), corrected, strict=True)
        return [self.choices.of(name, layer).choose(self.rng, size) for layer, size in pairs]

    def _spread(self, name: str, kept: list[Kept], total: int, layers: Kept) -> list[Kept]:
        """Resize the kept entries of the layers so that they add up to a total."""
        if not self.space.layer_wise:
            return [self._resize(name, kept[0], total // len(kept))] * len(kept)
        corrected = _correct(self.rng, [count(entry) for entry in kept], total, self._sizes[name])
        changes = zip(indices(layers), kept, corrected, strict=True)
        return [self.choices.of(name, layer).resize(self.rng, entry, size) for layer, entry, size in changes]


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
