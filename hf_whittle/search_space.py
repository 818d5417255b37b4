"""The search spaces: sample, mutate and cross over subnets that lie in a bin by construction.

The cost of a subnet is a polynomial of its sizes: for given channels and layers it is linear in the total number of
heads and in the total number of neurons. So a space keeps to a bin by arithmetic on these two totals, and no
operation draws subnets to throw them away. Every operation ends in the same three steps: channels and layers for
which the bin is reachable; totals of heads and neurons that lie in it; the totals spread over the layers.
"""

from dataclasses import astuple, dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .architecture import head_dim
from .cost import Bin, Polynomial
from .errors import BinError, SubnetError
from .subnet import Kept, Shape, SubnetConfig, count, indices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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
    """

    config: "PreTrainedConfig" = field(repr=False)
    granularity: Literal["coarse", "fine"]
    layer_wise: bool
    stock_only: bool
    hidden_size: range
    num_hidden_layers: range
    num_attention_heads: range
    intermediate_size: range
    _reachable: dict[Bin, list[tuple[int, int]]] = field(default_factory=dict, repr=False, compare=False)
    _costs: dict[Bin, tuple[Polynomial, float, float]] = field(default_factory=dict, repr=False, compare=False)

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
        )

    def to_dict(self) -> dict[str, Any]:
        """The choices that define the space, for a record of a search."""
        sizes = {
            name: [getattr(self, name).start, getattr(self, name)[-1], getattr(self, name).step] for name in _SIZES
        }
        chosen = {"granularity": self.granularity, "layer_wise": self.layer_wise, "stock_only": self.stock_only}
        return {**chosen, **sizes}

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig:
        """Draw a subnet in the bin.

        The law of the draw: the number of channels and the number of layers are uniform over the pairs for which the
        bin is reachable; given these, the total of heads is uniform over the totals for which it is reachable, and
        the total of neurons uniform over what is then left of the bin. Totals are spread over the layers by
        independent uniform draws, corrected in a random order. Which entries are kept is uniform.

        Raises:
            BinError: if no subnet of the space lies in the bin.
        """
        channels, layers = rng.choice(self._pairs(bin))
        draft = _Draft(
            channels=_choose(rng, channels, self.config.hidden_size, self.granularity),
            layers=_choose(rng, layers, self.config.num_hidden_layers, self.granularity),
        )
        heads = rng.choice(self._head_totals(bin, channels, layers))
        low, high = self._neuron_totals(bin, channels, layers, heads)
        neurons = rng.randrange(low, high + 1, self._unit(layers) * self.intermediate_size.step)
        draft.heads = self._draw_layers(rng, heads, layers, self.num_attention_heads, self.config.num_attention_heads)
        draft.neurons = self._draw_layers(rng, neurons, layers, self.intermediate_size, self.config.intermediate_size)
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

    # Which sizes lie in the bin

    def reachable_costs(self, polynomial: Polynomial) -> tuple[float, float]:
        """Least and greatest cost of a subnet of this space.

        Raises:
            BinError: if the space has no subnet at all.
        """
        possible = [channels for channels in self.hidden_size if self._heads_for(channels)]
        if not possible:
            raise BinError(
                f"no subnet of this space fits a stock model: none of the hidden sizes {self.hidden_size} is filled by "
                f"{self.num_attention_heads} heads of {head_dim(self.config)} channels; change one of these ranges"
            )

        def corner(end: int) -> float:
            channels, layers = possible[end], self.num_hidden_layers[end]
            heads, neurons = self._heads_for(channels)[end], self.intermediate_size[end]
            return polynomial(Shape(channels, (heads,) * layers, (neurons,) * layers))

        return corner(0), corner(-1)

    def _heads_for(self, channels: int) -> range:
        """Numbers of heads a layer may have: any of the range, or with `stock_only` those that fill the channels."""
        if not self.stock_only:
            return self.num_attention_heads
        heads, rest = divmod(channels, head_dim(self.config))
        return range(heads, heads + 1) if not rest and heads in self.num_attention_heads else range(0)

    def _pairs(self, bin: Bin) -> list[tuple[int, int]]:
        """Numbers of channels and layers for which some subnet lies in the bin."""
        if bin not in self._reachable:
            pairs = [(c, n) for c in self.hidden_size for n in self.num_hidden_layers if self._head_totals(bin, c, n)]
            if not pairs:
                low, high = self.reachable_costs(bin.cost(self.config))
                raise BinError(
                    f"no subnet of this space lies in the bin {bin.low:,.10g} to {bin.high:,.10g}; its subnets have "
                    f"{low:,.10g} to {high:,.10g}: choose a bin within that range, or a wider one"
                )
            self._reachable[bin] = pairs
        return self._reachable[bin]

    def _unit(self, layers: int) -> int:
        """Layers that change together: all of them in a uniform space."""
        return 1 if self.layer_wise else layers

    def _head_totals(self, bin: Bin, channels: int, layers: int) -> list[int]:
        """Totals of heads over the layers for which some total of neurons lies in the bin, ascending."""
        sizes = self._heads_for(channels)
        if not sizes:
            return []
        totals = np.arange(sizes[0] * layers, sizes[-1] * layers + 1, sizes.step * self._unit(layers))
        low, high = self._neuron_totals(bin, channels, layers, totals)
        return totals[low <= high].tolist()

    def _neuron_totals(self, bin: Bin, channels: int, layers: int, heads: Any) -> tuple[Any, Any]:
        """Least and greatest total of neurons in the bin for a total of heads; the least exceeds it if there is none.

        `heads` may be a number or an array.
        """
        cost, least, most = self._cost(bin)
        sizes = self.intermediate_size
        fewest, step = sizes[0] * layers, sizes.step * self._unit(layers)
        spent = cost.base(channels, layers) + heads * cost.per_head(channels) + fewest * cost.per_neuron(channels)
        price = step * cost.per_neuron(channels)
        steps = (sizes[-1] - sizes[0]) * layers // step
        if price:
            low = np.maximum(0, -np.floor_divide(spent - least, price))
            high = np.minimum(steps, np.floor_divide(most - spent, price))
        else:  # neurons are free
            low, high = 0 * spent, np.where((least <= spent) & (spent <= most), steps, -1)
        low, high = fewest + low * step, fewest + high * step
        return (int(low), int(high)) if np.ndim(heads) == 0 else (low, high)

    def _cost(self, bin: Bin) -> tuple[Polynomial, float, float]:
        """The cost a bin bounds, and its ends: whole numbers for a cost that is counted.

        The ends of a measured cost move inwards by a billionth, more than rounding can put a sum outside.
        """
        if bin not in self._costs:
            cost = bin.cost(self.config)
            if all(isinstance(coefficient, int) for coefficient in astuple(cost)):
                self._costs[bin] = cost, int(np.ceil(min(bin.low, 1e18))), int(np.floor(min(bin.high, 1e18)))
            else:
                self._costs[bin] = cost, bin.low * (1 + 1e-9), bin.high * (1 - 1e-9)
        return self._costs[bin]

    # Changing a draft

    def _change_channels(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        layers = count(draft.layers)
        sizes = [c for c, n in self._pairs(bin) if n == layers and c != count(draft.channels)]
        if sizes:
            size = _nearby(rng, sizes, count(draft.channels))
            draft.channels = _resize(rng, draft.channels, size, self.config.hidden_size, self.granularity)

    def _change_layers(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        channels = count(draft.channels)
        sizes = [n for c, n in self._pairs(bin) if c == channels and n != count(draft.layers)]
        if sizes:
            size = _nearby(rng, sizes, count(draft.layers))
            layers = _resize(rng, draft.layers, size, self.config.num_hidden_layers, self.granularity)
            self._keep_layers(draft, layers, rng)

    def _keep_layers(self, draft: "_Draft", layers: Kept, rng: Random) -> None:
        """Keep other layers; one that comes in takes the heads and neurons of a layer that was there."""
        for name in ("heads", "neurons"):
            before = dict(zip(indices(draft.layers), getattr(draft, name), strict=True))
            entries = list(before.values())
            setattr(draft, name, [before[i] if i in before else rng.choice(entries) for i in indices(layers)])
        draft.layers = layers

    def _change_heads(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        self._redraw_layer(draft.heads, rng, self.num_attention_heads, self.config.num_attention_heads)

    def _change_neurons(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        self._redraw_layer(draft.neurons, rng, self.intermediate_size, self.config.intermediate_size)

    def _redraw_layer(self, kept: list[Kept], rng: Random, sizes: range, total: int) -> None:
        positions = [rng.randrange(len(kept))] if self.layer_wise else list(range(len(kept)))
        entry = _resize(rng, kept[positions[0]], rng.choice(sizes), total, self.granularity)
        for position in positions:
            kept[position] = entry

    def _exchange_entries(self, draft: "_Draft", rng: Random, bin: Bin) -> None:
        """Replace some kept entries of one dimension by as many others."""
        name = rng.choice(("channels", "layers", "heads", "neurons"))
        if name == "channels":
            draft.channels = _exchange(rng, draft.channels, self.config.hidden_size)
        elif name == "layers":
            self._keep_layers(draft, _exchange(rng, draft.layers, self.config.num_hidden_layers), rng)
        else:
            kept = getattr(draft, name)
            total = self.config.num_attention_heads if name == "heads" else self.config.intermediate_size
            positions = [rng.randrange(len(kept))] if self.layer_wise else list(range(len(kept)))
            entry = _exchange(rng, kept[positions[0]], total)
            for position in positions:
                kept[position] = entry

    def _settle(self, draft: "_Draft", rng: Random, bin: Bin) -> SubnetConfig:
        """Move a draft into the bin by as little as that takes: channels and layers, then totals of heads, neurons."""
        channels, layers = self._nearest_pair(draft, bin)
        draft.channels = _resize(rng, draft.channels, channels, self.config.hidden_size, self.granularity)
        if layers != count(draft.layers):
            total = self.config.num_hidden_layers
            self._keep_layers(draft, _resize(rng, draft.layers, layers, total, self.granularity), rng)
        totals = self._head_totals(bin, channels, layers)
        heads = min(totals, key=lambda total: abs(total - sum(map(count, draft.heads))))
        draft.heads = self._spread(rng, draft.heads, heads, self.num_attention_heads, self.config.num_attention_heads)
        low, high = self._neuron_totals(bin, channels, layers, heads)
        neurons = min(max(sum(map(count, draft.neurons)), low), high)
        draft.neurons = self._spread(rng, draft.neurons, neurons, self.intermediate_size, self.config.intermediate_size)
        return draft.subnet()

    def _nearest_pair(self, draft: "_Draft", bin: Bin) -> tuple[int, int]:
        """The draft's own numbers of channels and layers if the bin is reachable with them, else the nearest."""
        own = count(draft.channels), count(draft.layers)
        pairs = self._pairs(bin)
        return own if own in pairs else min(pairs, key=lambda pair: (abs(pair[1] - own[1]), abs(pair[0] - own[0])))

    def _draw_layers(self, rng: Random, total: int, layers: int, sizes: range, most: int) -> list[Kept]:
        """Kept entries of each layer, drawn at random and corrected to a total."""
        if not self.layer_wise:
            return [_choose(rng, total // layers, most, self.granularity)] * layers
        drawn = [rng.choice(sizes) for _ in range(layers)]
        return [_choose(rng, size, most, self.granularity) for size in _correct(rng, drawn, total, sizes)]

    def _spread(self, rng: Random, kept: list[Kept], total: int, sizes: range, most: int) -> list[Kept]:
        """Resize the kept entries of the layers so that they add up to a total."""
        if not self.layer_wise:
            return [_resize(rng, kept[0], total // len(kept), most, self.granularity)] * len(kept)
        corrected = _correct(rng, [count(entry) for entry in kept], total, sizes)
        return [_resize(rng, entry, size, most, self.granularity) for entry, size in zip(kept, corrected, strict=True)]


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


def _choose(rng: Random, size: int, total: int, granularity: str) -> Kept:
    return size if granularity == "coarse" else tuple(sorted(rng.sample(range(total), size)))


def _resize(rng: Random, kept: Kept, size: int, total: int, granularity: str) -> Kept:
    """Keep `size` entries: drop some at random, or add some."""
    if granularity == "coarse" or size == count(kept):
        return size if granularity == "coarse" else kept
    present = indices(kept)
    if size < len(present):
        return tuple(sorted(rng.sample(present, size)))
    absent = sorted(set(range(total)).difference(present))
    return tuple(sorted((*present, *rng.sample(absent, size - len(present)))))


def _exchange(rng: Random, kept: Kept, total: int) -> Kept:
    """Replace one to a quarter of the kept entries by others."""
    present = indices(kept)
    absent = sorted(set(range(total)).difference(present))
    number = min(rng.randint(1, max(1, len(present) // 4)), len(absent))
    stay = rng.sample(present, len(present) - number)
    return tuple(sorted((*stay, *rng.sample(absent, number))))


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
