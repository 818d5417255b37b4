"""SubnetConfig: the entries of each dimension of a super-network that a subnet keeps."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architectures.dimensions import (
    CHANNELS,
    HEAD_CHANNELS,
    HEADS,
    KEY_VALUE_HEADS,
    LAYERS,
    NEURONS,
    QUERIES,
    VOCABULARY,
    Dimension,
)
from .architectures.registry import get_architecture
from .compat.transformers import layer_configs
from .errors import SubnetError
from .files.sources import fetch_folder
from .files.text import read_json, write_text
from .kept import (
    Kept,
    as_runs,
    canonical,
    check_units,
    check_within,
    composed,
    count,
    from_runs,
    indices,
    is_number,
    json_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SUBNET_FILE = "subnet.json"
DIMENSIONS = (CHANNELS, LAYERS, HEADS, NEURONS, KEY_VALUE_HEADS, QUERIES, HEAD_CHANNELS, VOCABULARY)
"""Every dimension of any architecture's subnets, in the order of the fields of `SubnetConfig`."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a super-network or a student; every layer may have its own heads and neurons.

    A dimension that its architecture does not have is `None`. So is an optional one of a subnet that does not name it;
    `filled` gives it the super-network's size.
    """

    hidden_size: int
    num_attention_heads: tuple[int, ...] | None = None
    intermediate_size: tuple[int, ...] | None = None
    num_key_value_heads: tuple[int, ...] | None = None
    num_key_value_groups: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        return len(next(getattr(self, d.name) for d in self.dimensions if d.per_layer))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions with a size; the layers are not among them."""
        return tuple(d for d in DIMENSIONS if d is not LAYERS and getattr(self, d.name) is not None)

    @property
    def per_layer(self) -> tuple[Dimension, ...]:
        """The dimensions of which each layer has a size of its own, the neurons last whatever the architecture."""
        return tuple(sorted((d for d in self.dimensions if d.per_layer), key=lambda dimension: dimension is NEURONS))

    @classmethod
    def from_config(cls, config: "PreTrainedConfig") -> "Shape":
        """Read the sizes of a model configuration, layer by layer if layers differ."""
        architecture = get_architecture(config)
        layers = layer_configs(config)
        if layers is None:
            sizes = [architecture.read_sizes(config)] * config.num_hidden_layers
        else:
            sizes = [architecture.read_sizes(layer) for layer in layers]
        found: dict[str, Any] = {dimension.name: sizes[0][dimension] for dimension in architecture.shared}
        found |= {d.name: tuple(of_layer[d] for of_layer in sizes) for d in architecture.per_layer}
        return cls(**found)

    def size(self, dimension: Dimension, layer: int = 0) -> int:
        """Size of a dimension, in a layer if it is one that layers have of their own."""
        if dimension is LAYERS:
            return self.num_hidden_layers
        size = getattr(self, dimension.name)
        return size[layer] if dimension.per_layer else size

    def of_layer(self, layer: int) -> dict[Dimension, int]:
        """Size of each dimension in a layer."""
        return {dimension: self.size(dimension, layer) for dimension in self.dimensions}

    def filled(self, full: "Shape") -> "Shape":
        """The same with the sizes of `full`, its super-network's, in optional dimensions that it does not name."""
        missing = [d.name for d in full.dimensions if d.is_optional and getattr(self, d.name) is None]
        return replace(self, **{name: getattr(full, name) for name in missing}) if missing else self

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same sizes."""
        return all(len(set(getattr(self, d.name))) == 1 for d in self.dimensions if d.per_layer)


@dataclass(frozen=True)
class SubnetConfig:
    """The entries of each dimension of a super-network that a subnet keeps.

    A dimension keeps its first `k` entries, written as the number `k`, or the entries with given indices, strictly
    ascending. Indices `0` to `k - 1` are stored as the number `k`, so that equal subnets compare, hash and serialize
    equal. Which dimensions there are depends on the architecture: where queries may be grouped, as in Llama, a subnet
    keeps `num_key_value_heads`, each with its queries, and otherwise `num_attention_heads`.

    Args:
        hidden_size (`int` or `Sequence[int]`): kept channels of the residual stream.
        num_hidden_layers (`int` or `Sequence[int]`): kept layers.
        num_attention_heads (`int` or `Sequence[int | Sequence[int]]`): kept heads, one entry for each kept layer, or
            a single number for all layers.
        intermediate_size (`int` or `Sequence[int | Sequence[int]]`): kept MLP neurons, likewise.
        num_key_value_heads (`int` or `Sequence[int | Sequence[int]]`): kept key-value heads, likewise.
        num_key_value_groups (`int` or `Sequence[int]`, *optional*): kept queries of each key-value head, in all layers;
            by default all.
        head_dim (`int` or `Sequence[int]`, *optional*): kept channels of each head, in all layers; by default all.
            Entries `2 * i` and `2 * i + 1` are the channels of rotary pair `i`, kept or left out together; channels
            that are not rotated come after the pairs.
        vocab_size (`int` or `Sequence[int]`, *optional*): kept tokens; by default all. A token's id in the student is
            its place among them.

    Raises:
        SubnetError: if a dimension is empty, has negative, repeated or unsorted indices, or if there is not one entry
            for each kept layer.
    """

    hidden_size: Kept
    num_hidden_layers: Kept
    num_attention_heads: tuple[Kept, ...] | None = None
    intermediate_size: tuple[Kept, ...] | None = None
    num_key_value_heads: tuple[Kept, ...] | None = None
    num_key_value_groups: Kept | None = None
    head_dim: Kept | None = None
    vocab_size: Kept | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers"):
            object.__setattr__(self, name, canonical(getattr(self, name), name))
        for dimension in dict.fromkeys((NEURONS, *self.dimensions[2:])):
            name = dimension.name
            if dimension.per_layer:
                kept: Any = self._canonical_by_layer(name)
            else:
                kept = canonical(getattr(self, name), name)
                check_units(kept, dimension)
            object.__setattr__(self, name, kept)
        heads = [dimension.name for dimension in (HEADS, KEY_VALUE_HEADS) if self.kept(dimension) is not None]
        if len(heads) != 1:
            got = " and ".join(heads) or "neither"
            raise SubnetError(
                f"a subnet keeps either num_attention_heads or num_key_value_heads, got {got}; give the one that "
                "SubnetConfig.full(config) of its super-network has"
            )

    def _canonical_by_layer(self, name: str) -> tuple[Kept, ...]:
        value = getattr(self, name)
        if hasattr(value, "tolist"):  # arrays and tensors
            value = value.tolist()
        if is_number(value):
            value = [value] * count(self.num_hidden_layers)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise SubnetError(f"{name}: expected a number or one entry for each kept layer, got {value!r}")
        if len(value) != count(self.num_hidden_layers):
            raise SubnetError(
                f"{name}: got {len(value)} entries for {count(self.num_hidden_layers)} kept layers; "
                "give one for each kept layer, or a single number for all"
            )
        return tuple(canonical(entry, f"{name} of layer {i}") for i, entry in zip(self.layers, value, strict=True))

    @classmethod
    def full(cls, config: "PreTrainedConfig | Shape") -> "SubnetConfig":
        """Return the subnet that keeps everything; it does not name optional dimensions."""
        shape = _shape(config)
        kept = {d.name: getattr(shape, d.name) for d in shape.dimensions if not d.is_optional}
        return cls(num_hidden_layers=shape.num_hidden_layers, **kept)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions that this subnet names: channels, layers, then the others."""
        named = (getattr(self, dimension.name) is not None for dimension in DIMENSIONS)
        return tuple(itertools.compress(DIMENSIONS, named))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Indices of the kept layers, ascending."""
        return indices(self.num_hidden_layers)

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the student."""
        sizes: dict[str, Any] = {}
        for dimension in self.dimensions:
            kept = self.kept(dimension)
            sizes[dimension.name] = tuple(map(count, kept)) if dimension.per_layer else count(kept)
        del sizes[LAYERS.name]
        return Shape(**sizes)

    def kept(self, dimension: Dimension) -> Any:
        """Kept entries of a dimension, for each kept layer if layers have entries of their own.

        `None` if this subnet does not name the dimension.
        """
        return getattr(self, dimension.name)

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same sizes."""
        return self.shape.is_uniform

    def replaced(self, kept: Mapping[Dimension, Any]) -> "SubnetConfig":
        """The same subnet with other entries of some dimensions."""
        return replace(self, **{dimension.name: entries for dimension, entries in kept.items()})

    @cached_property
    def digest(self) -> str:
        """A short name: the first 12 hexadecimal digits of the SHA-256 of its JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def validate(self, config: "PreTrainedConfig | Shape") -> None:
        """Check that a super-network has every entry this subnet keeps.

        Raises:
            SubnetError: names the dimension, the layer, the entry that was got and the allowed ones.
        """
        shape = _shape(config)
        self._check_dimensions(shape)
        check_within(self.hidden_size, shape.hidden_size, CHANNELS)
        check_within(self.num_hidden_layers, shape.num_hidden_layers, LAYERS)
        for dimension in self.dimensions[2:]:
            if not dimension.per_layer:
                check_within(self.kept(dimension), shape.size(dimension), dimension)
        for position, layer in enumerate(self.layers):
            for dimension in self.dimensions:
                if dimension.per_layer:
                    check_within(self.kept(dimension)[position], shape.size(dimension, layer), dimension, layer)

    def _check_dimensions(self, shape: Shape) -> None:
        allowed = [d.name for d in (CHANNELS, LAYERS, *shape.dimensions[1:])]
        needed = [d.name for d in (CHANNELS, LAYERS, *shape.dimensions[1:]) if not d.is_optional]
        got = [d.name for d in self.dimensions]
        if not set(needed) <= set(got) <= set(allowed):
            optional = [name for name in allowed if name not in needed]
            also = f", and may have {' and '.join(optional)}" if optional else ""
            raise SubnetError(
                f"subnets of this super-network have {', '.join(needed)}{also}; got {', '.join(got)}. Was the subnet "
                "made for another model?"
            )

    def with_layers(self, layers: Sequence[int]) -> "SubnetConfig":
        """Return the subnet with only some of its layers, given by their indices in the super-network."""
        positions = [position for position, layer in enumerate(self.layers) if layer in set(layers)]
        if len(positions) != len(layers):
            raise SubnetError(
                f"num_hidden_layers: got {list(layers)}, the subnet has {list(self.layers)}; use some of these"
            )
        kept = {d: tuple(self.kept(d)[position] for position in positions) for d in self.dimensions if d.per_layer}
        return self.replaced({LAYERS: tuple(layers), **kept})

    def compose(self, inner: "SubnetConfig") -> "SubnetConfig":
        """Map `inner`, a subnet of this one's student, to a subnet of the super-network."""
        whole = [d for d in inner.dimensions if d.is_optional and self.kept(d) is None]
        inner_of_named = inner.replaced(dict.fromkeys(whole))
        inner_of_named.validate(self.shape)
        kept_of_both: dict[Dimension, Any] = {dimension: inner.kept(dimension) for dimension in whole}
        for dimension in inner_of_named.dimensions:
            outer, chosen = self.kept(dimension), inner.kept(dimension)
            if dimension.per_layer:
                pairs = zip(inner.layers, chosen, strict=True)
                kept_of_both[dimension] = tuple(composed(outer[position], kept) for position, kept in pairs)
            else:
                kept_of_both[dimension] = composed(outer, chosen)
        return self.replaced(kept_of_both)

    def to_dict(self) -> dict[str, Any]:
        """The kept entries by name; of tokens, runs of neighbours are lists of the first and the last."""
        values = {d.name: list(self.kept(d)) if d.per_layer else self.kept(d) for d in self.dimensions}
        if isinstance(self.vocab_size, tuple):
            values[VOCABULARY.name] = as_runs(self.vocab_size)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SubnetConfig":
        known = {dimension.name for dimension in DIMENSIONS}
        expected = {CHANNELS.name, LAYERS.name, NEURONS.name}
        if not isinstance(values, dict) or not expected <= set(values) <= known:
            got = sorted(values) if isinstance(values, dict) else repr(values)
            raise SubnetError(
                f"a subnet has the keys {sorted(expected)} and some of {sorted(known - expected)}, got {got}"
            )
        tokens = values.get(VOCABULARY.name)
        return cls(**{**values, VOCABULARY.name: from_runs(tokens) if isinstance(tokens, list) else tokens})

    def to_json(self) -> str:
        """Return one line of JSON, the same bytes for equal subnets."""
        texts: dict[int, str] = {}  # layers may share their entries, of which there are thousands
        named = [f'"{name}":{json_of(kept, texts)}' for name, kept in self.to_dict().items()]
        return f"{{{','.join(named)}}}"

    @classmethod
    def from_json(cls, text: str) -> "SubnetConfig":
        return cls.from_dict(json.loads(text))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `subnet.json` into a folder."""
        write_text(Path(folder) / SUBNET_FILE, self.to_json() + "\n")

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> "SubnetConfig":
        """Read `subnet.json` of a student.

        Args:
            source (`str` or `Path`): folder or repository of the student.
            hub: `revision`, `token`, `cache_dir` and `local_files_only`, as in `PreTrainedModel.from_pretrained`.

        Raises:
            CheckpointError: if it has no `subnet.json`, or cannot be found.
        """
        return cls.from_dict(read_json(fetch_folder(source, [SUBNET_FILE], **hub) / SUBNET_FILE))


def _shape(config: "PreTrainedConfig | Shape") -> Shape:
    return config if isinstance(config, Shape) else Shape.from_config(config)
