"""The search spaces: sample, mutate and cross over subnets that lie in a bin by construction.

No operation draws subnets to throw them away. Every one ends in the same three steps: channels and layers for which
the bin is reachable; totals of heads and neurons that lie in it (`reach.py`); the totals spread over the layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..cost.bins import Bin
from ..cost.polynomial import Polynomial
from ..errors import SubnetError
from ..models.architecture import head_dim
from ..subnet import Kept, Shape, SubnetConfig, count, indices
from .entries import AnyEntries, Entries, FirstEntries
from .reach import Reach, reachable_costs

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..importance.scores import ImportanceScores

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class SearchSpace:
    """All subnets of a super-network whose sizes lie in given ranges.

    Use `SearchSpace.from_config`, which fills in the ranges.

    Args:
        config (`PreTrainedConfig`): the super-network's; all its layers have the same sizes.
        granularity (`str`): `"coarse"` keeps the first entries of each dimension, `"fine"` any entries.
        layer_wise (`bool`): whether layers may keep different heads and neurons.
        stock_only (`bool`): only subnets whose student a stock model holds: uniform, heads that fill the hidden size.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`range`): the sizes a subnet may have.
        importance (`ImportanceScores`, *optional*): scores by which fine-grained entries are chosen.
        temperature (`float`): how far a choice may stray from the scores; see `AnyEntries`.
    """

    config: "PreTrainedConfig" = field(repr=False)
    granularity: Literal["coarse", "fine"]
    layer_wise: bool
    stock_only: bool
    hidden_size: range
    num_hidden_layers: range
    num_attention_heads: range
    intermediate_size: range
    importance: "ImportanceScores | None" = field(default=None, repr=False)
    temperature: float = 0.1
    _reaches: dict[Bin, Reach] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.granularity not in ("coarse", "fine"):
            raise SubnetError(f"granularity must be 'coarse' or 'fine', got {self.granularity!r}")
        shape = Shape.from_config(self.config)
        if len(set(shape.num_attention_heads)) > 1 or len(set(shape.intermediate_size)) > 1:
            raise SubnetError(
                "a search space needs a super-network whose layers are all alike; search the original one"
            )
        if self.stock_only and self.layer_wise:
            raise SubnetError("a stock model has layers that are all alike: stock_only=True needs layer_wise=False")
        if self.importance is not None:
            if self.granularity == "coarse":
                raise SubnetError(
                    "a coarse space keeps first entries and has no use for importance; sort the super-network with "
                    "sort_by_importance, or use granularity='fine'"
                )
            self.importance.check(shape)
        if not 0 <= self.temperature < math.inf:
            raise SubnetError(f"temperature must be a number from 0, got {self.temperature}")
        for name in _SIZES:
            sizes, most = getattr(self, name), getattr(self.config, name)
            if not sizes or sizes[0] < 1 or sizes[-1] > most or sizes.step < 0:
                raise SubnetError(f"{name}: sizes must be an ascending range within 1 to {most}, got {sizes}")

    @classmethod
    def from_config(
        cls,
        config: "PreTrainedConfig",
        granularity: Literal["coarse", "fine"] = "coarse",
        layer_wise: bool = False,
        stock_only: bool = False,
        hidden_size: range | None = None,
        num_hidden_layers: range | None = None,
        num_attention_heads: range | None = None,
        intermediate_size: range | None = None,
        importance: "ImportanceScores | None" = None,
        temperature: float = 0.1,
    ) -> "SearchSpace":
        """A space of subnets of a super-network.

        Args:
            config (`PreTrainedConfig`): the super-network's.
            granularity (`str`, *optional*, defaults to `"coarse"`): `"coarse"` or `"fine"`.
            layer_wise (`bool`, *optional*, defaults to `False`): whether layers may differ.
            stock_only (`bool`, *optional*, defaults to `False`): whether a stock model must hold the student.
            hidden_size (`range`, *optional*): allowed numbers of channels; by default every multiple of
                `config.hidden_size // 64` (of `head_dim` with `stock_only`).
            num_hidden_layers (`range`, *optional*): allowed numbers of layers; by default all.
            num_attention_heads (`range`, *optional*): allowed numbers of heads of a layer; by default all.
            intermediate_size (`range`, *optional*): allowed numbers of neurons of a layer; by default every multiple
                of `config.intermediate_size // 256`.
            importance (`ImportanceScores`, *optional*): scores of the super-network; a fine-grained space then draws,
                adds and leaves out entries by them.
            temperature (`float`, *optional*, defaults to 0.1): how far a choice may stray from the scores: 0 always
                keeps the most important entries; see `AnyEntries`.

        Raises:
            SubnetError: if a range does not fit the super-network.
        """
        channel_step = head_dim(config) if stock_only else max(1, config.hidden_size // 64)
        neuron_step = max(1, config.intermediate_size // 256)

        def given(sizes: range | None, most: int, step: int = 1) -> range:
            return range(step, most + 1, step) if sizes is None else sizes

        return cls(
            config=config,
            granularity=granularity,
            layer_wise=layer_wise,
            stock_only=stock_only,
            hidden_size=given(hidden_size, config.hidden_size, channel_step),
            num_hidden_layers=given(num_hidden_layers, config.num_hidden_layers),
            num_attention_heads=given(num_attention_heads, config.num_attention_heads),
            intermediate_size=given(intermediate_size, config.intermediate_size, neuron_step),
            importance=importance,
            temperature=temperature,
        )

    def to_dict(self) -> dict[str, Any]:
        """The choices that define the space, for a record of a search."""
        sizes = {
            name: [getattr(self, name).start, getattr(self, name)[-1], getattr(self, name).step] for name in _SIZES
        }
        chosen: dict[str, Any] = {
            "granularity": self.granularity,
            "layer_wise": self.layer_wise,
            "stock_only": self.stock_only,
        }
        if self.importance is not None:
            chosen |= {"importance": self.importance.settings, "temperature": self.temperature}
        return {**chosen, **sizes, "supernet": {name: getattr(self.config, name) for name in _SIZES}}

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig:
        """Draw a subnet in the bin.

        The law of the draw: the number of channels and the number of layers are uniform over the pairs for which the
        bin is reachable; given these, the total of heads is uniform over the totals for which it is reachable, and
        the total of neurons uniform over what is then left of the bin. Totals are spread over the layers by
        independent uniform draws, corrected in a random order. Which entries are kept is uniform, or goes by
        importance. Every subnet of the bin can be drawn, but not all are equally likely: sizes are spread evenly, so
        a subnet of few layers, of which there are fewer, is likelier than one of many.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        channels, layers = rng.choice(self.reachable_pairs(bin))
        draft = _Draft(
            channels=self._channels.choose(rng, channels),
            layers=self._layers.choose(rng, layers),
        )
        heads = rng.choice(self._reach(bin).head_totals(channels, layers))
        low, high = self._reach(bin).neuron_totals(channels, layers, heads)
        neurons = rng.randrange(low, high + 1, self._reach(bin).unit(layers) * self.intermediate_size.step)
        draft.heads = self._draw_layers(rng, "heads", heads, draft.layers)
        draft.neurons = self._draw_layers(rng, "neurons", neurons, draft.layers)
        return draft.subnet()

    def mutate(self, subnet: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """Change one dimension of a subnet, and its heads and neurons by as little as brings it back into the bin.

        One of these is drawn: another number of channels, another number of layers, other heads or other neurons in
        one layer (in all of them if the space is uniform), or, in a fine-grained space, as many other entries of one
        dimension.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        draft = _Draft.of(subnet)
        changes = [self._change_channels, self._change_layers, self._change_heads, self._change_neurons]
        if self.granularity == "fine":
            changes.append(self._exchange_entries)
        rng.choice(changes)(draft, rng, bin)
        return self._settle(draft, rng, bin)

    def crossover(self, first: SubnetConfig, second: SubnetConfig, rng: Random, bin: Bin) -> SubnetConfig:
        """A child that takes each dimension from one of two parents, then settles in the bin.

        Channels and layers come from either parent; the heads and the neurons of a kept layer from a parent that
        keeps this layer (in a uniform space, of all layers from either parent).

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        a, b = _Draft.of(first), _Draft.of(second)
        child = _Draft(channels=rng.choice((a.channels, b.channels)), layers=rng.choice((a.layers, b.layers)))
        for name in ("heads", "neurons"):
            if not self.layer_wise:
                kept = rng.choice((getattr(a, name), getattr(b, name)))[0]
                setattr(child, name, [kept] * count(child.layers))
                continue
            of_a, of_b = (dict(zip(indices(p.layers), getattr(p, name), strict=True)) for p in (a, b))
            setattr(
                child,
                name,
                [rng.choice([p[layer] for p in (of_a, of_b) if layer in p]) for layer in indices(child.layers)],
            )
        return self._settle(child, rng, bin)

    def contains(self, subnet: SubnetConfig) -> bool:
        """Whether a subnet belongs to the space, wherever it lies."""
        subnet.validate(self.config)
        shape = subnet.shape
        kept = (subnet.hidden_size, subnet.num_hidden_layers, *subnet.num_attention_heads, *subnet.intermediate_size)
        return (
            shape.hidden_size in self.hidden_size
            and shape.num_hidden_layers in self.num_hidden_layers
            and all(heads in self.num_attention_heads for heads in shape.num_attention_heads)
            and all(neurons in self.intermediate_size for neurons in shape.intermediate_size)
            and (self.granularity == "fine" or all(isinstance(entry, int) for entry in kept))
            and (self.layer_wise or len({*subnet.num_attention_heads}) == len({*subnet.intermediate_size}) == 1)
            and (not self.stock_only or shape.num_attention_heads[0] * head_dim(self.config) == shape.hidden_size)
        )

    def reachable_costs(self, cost: Polynomial) -> tuple[float, float]:
        """Least and greatest cost of a subnet of this space.

        Raises:
            BinError: if the space has no subnet at all.
        """
        return reachable_costs(self, cost)

    def reachable_pairs(self, bin: Bin) -> list[tuple[int, int]]:
        """Numbers of channels and layers for which some subnet of this space lies in the bin.

        Raises:
            BinError: if there is none.
        """
        return self._reach(bin).pairs

    def _reach(self, bin: Bin) -> Reach:
        if bin not in self._reaches:
            self._reaches[bin] = Reach(self, bin)
        return self._reaches[bin]

    # Changing a draft

    def _change_channels(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        layers = count(draft.layers)
        sizes = [c for c, n in self._reach(bin).pairs if n == layers and c != count(draft.channels)]
        if sizes:
            size = _nearby(rng, sizes, count(draft.channels))
            draft.channels = self._channels.resize(rng, draft.channels, size)

    def _change_layers(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        channels = count(draft.channels)
        sizes = [n for c, n in self._reach(bin).pairs if c == channels and n != count(draft.layers)]
        if sizes:
            size = _nearby(rng, sizes, count(draft.layers))
            self._keep_layers(draft, self._layers.resize(rng, draft.layers, size), rng)

    def _keep_layers(self, draft: "_Draft", layers: Kept, rng: Random) -> None:
        """Keep other layers; one that comes in takes the heads and neurons of a layer that was there."""
        for name in ("heads", "neurons"):
            before = dict(zip(indices(draft.layers), getattr(draft, name), strict=True))
            entries = list(before.values())
            setattr(draft, name, [before[i] if i in before else rng.choice(entries) for i in indices(layers)])
        draft.layers = layers

    def _change_heads(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        self._redraw_layer(draft, "heads", rng)

    def _change_neurons(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        self._redraw_layer(draft, "neurons", rng)

    def _redraw_layer(self, draft: "_Draft", name: str, rng: Random) -> None:
        sizes = self._sizes(name)
        self._change_layer(draft, name, rng, lambda entries, kept: entries.resize(rng, kept, rng.choice(sizes)))

    def _change_layer(self, draft: "_Draft", name: str, rng: Random, change: Callable[[Entries, Kept], Kept]) -> None:
        """Change the heads or neurons of one layer, or of all in a uniform space."""
        kept = getattr(draft, name)
        if self.layer_wise:
            position = rng.randrange(len(kept))
            kept[position] = change(self.entries(name, indices(draft.layers)[position]), kept[position])
        else:
            kept[:] = [change(self.entries(name), kept[0])] * len(kept)

    def _exchange_entries(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        """Replace some kept entries of one dimension by as many others."""
        name = rng.choice(("channels", "layers", "heads", "neurons"))
        if name == "channels":
            draft.channels = self._channels.exchange(rng, draft.channels)
        elif name == "layers":
            self._keep_layers(draft, self._layers.exchange(rng, draft.layers), rng)
        else:
            self._change_layer(draft, name, rng, lambda entries, kept: entries.exchange(rng, kept))

    def _settle(self, draft: "_Draft", rng: Random, bin: Bin) -> SubnetConfig:
        """Move a draft into the bin by as little as that takes: channels and layers, then totals of heads, neurons."""
        channels, layers = self._nearest_pair(draft, bin)
        draft.channels = self._channels.resize(rng, draft.channels, channels)
        if layers != count(draft.layers):
            self._keep_layers(draft, self._layers.resize(rng, draft.layers, layers), rng)
        totals = self._reach(bin).head_totals(channels, layers)
        heads = min(totals, key=lambda total: abs(total - sum(map(count, draft.heads))))
        draft.heads = self._spread(rng, "heads", draft.heads, heads, draft.layers)
        low, high = self._reach(bin).neuron_totals(channels, layers, heads)
        neurons = min(max(sum(map(count, draft.neurons)), low), high)
        draft.neurons = self._spread(rng, "neurons", draft.neurons, neurons, draft.layers)
        return draft.subnet()

    def _nearest_pair(self, draft: "_Draft", bin: Bin) -> tuple[int, int]:
        """The draft's own numbers of channels and layers if the bin is reachable with them, else the nearest."""
        own = count(draft.channels), count(draft.layers)
        pairs = self._reach(bin).pairs
        return own if own in pairs else min(pairs, key=lambda pair: (abs(pair[1] - own[1]), abs(pair[0] - own[0])))

    def _draw_layers(self, rng: Random, name: str, total: int, layers: Kept) -> list[Kept]:
        """Kept entries of each layer, drawn at random and corrected to a total."""
        if not self.layer_wise:
            return [self.entries(name).choose(rng, total // count(layers))] * count(layers)
        sizes = self._sizes(name)
        drawn = [rng.choice(sizes) for _ in range(count(layers))]
        corrected = zip(indices(layers), _correct(rng, drawn, total, sizes), strict=True)
        return [self.entries(name, layer).choose(rng, size) for layer, size in corrected]

    def _spread(self, rng: Random, name: str, kept: list[Kept], total: int, layers: Kept) -> list[Kept]:
        """Resize the kept entries of the layers so that they add up to a total."""
        if not self.layer_wise:
            return [self.entries(name).resize(rng, kept[0], total // len(kept))] * len(kept)
        corrected = _correct(rng, [count(entry) for entry in kept], total, self._sizes(name))
        changes = zip(indices(layers), kept, corrected, strict=True)
        return [self.entries(name, layer).resize(rng, entry, size) for layer, entry, size in changes]

    # Which entries

    def _sizes(self, name: str) -> range:
        return self.num_attention_heads if name == "heads" else self.intermediate_size

    @cached_property
    def _channels(self) -> Entries:
        return self._some(self.config.hidden_size, self.importance and self.importance.channels)

    @cached_property
    def _layers(self) -> Entries:
        return self._some(self.config.num_hidden_layers, self.importance and self.importance.layers)

    def entries(self, name: str, layer: int | None = None) -> Entries:
        """How `"channels"`, `"layers"`, or the `"heads"` or `"neurons"` of a layer (or of all alike) are chosen."""
        if name in ("channels", "layers"):
            return self._channels if name == "channels" else self._layers
        return self._in_layers[name][-1 if layer is None else layer]

    @cached_property
    def _in_layers(self) -> dict[str, list[Entries]]:
        """For heads and neurons, one of each layer, and one of all layers together by their mean rank."""
        chosen = {}
        for name, total in (("heads", self.config.num_attention_heads), ("neurons", self.config.intermediate_size)):
            if self.importance is None:
                chosen[name] = [self._some(total)] * (self.config.num_hidden_layers + 1)
            else:
                scores = np.stack(getattr(self.importance, name))
                mean_rank = -(-scores).argsort(1, kind="stable").argsort(1).mean(0)  # 0 for the best
                chosen[name] = [self._some(total, of_layer) for of_layer in (*scores, mean_rank)]
        return chosen

    def _some(self, total: int, scores: Any = None) -> Entries:
        if self.granularity == "coarse":
            return FirstEntries(total)
        return AnyEntries(total, scores, self.temperature)


@dataclass
class _Draft:
    """A subnet in the making."""

    channels: Kept
    layers: Kept
    heads: list[Kept] = field(default_factory=list)
    neurons: list[Kept] = field(default_factory=list)

    @classmethod
    def of(cls, subnet: SubnetConfig) -> "_Draft":
        heads, neurons = list(subnet.num_attention_heads), list(subnet.intermediate_size)
        return cls(subnet.hidden_size, subnet.num_hidden_layers, heads, neurons)

    def subnet(self) -> SubnetConfig:
        return SubnetConfig(self.channels, self.layers, tuple(self.heads), tuple(self.neurons))


def _nearby(rng: Random, sizes: list[int], size: int) -> int:
    """One of the sizes, those close to `size` more likely than those far off: as likely as their rank is low."""
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
