"""SubnetConfig: the layers, attention heads, MLP neurons and residual channels that a subnet keeps."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compat import layer_configs
from .errors import SubnetError
from .files.sources import fetch_folder
from .files.text import read_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Kept = int | tuple[int, ...]
"""Kept entries of a dimension: the first `k`, or those with these indices."""

SUBNET_FILE = "subnet.json"


class Ascending(tuple[int, ...]):
    """Indices known to be whole numbers of at least 0, strictly ascending; `SubnetConfig` does not check them again."""

    __slots__ = ()


@dataclass(frozen=True)
class Shape:
    """Sizes of a super-network or a student; every layer may have its own."""

    hidden_size: int
    num_attention_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.num_attention_heads)

    @classmethod
    def from_config(cls, config: "PreTrainedConfig") -> "Shape":
        """Read the sizes of a model configuration, layer by layer if layers differ."""
        layers = layer_configs(config) or [config] * config.num_hidden_layers
        return cls(
            hidden_size=config.hidden_size,
            num_attention_heads=tuple(layer.num_attention_heads for layer in layers),
            intermediate_size=tuple(layer.intermediate_size for layer in layers),
        )


@dataclass(frozen=True)
class SubnetConfig:
    """The entries of each dimension of a super-network that a subnet keeps.

    A dimension keeps its first `k` entries, written as the number `k`, or the entries with given indices, strictly
    ascending. Indices `0` to `k - 1` are stored as the number `k`, so that equal subnets compare, hash and serialize
    equal.

    Args:
        hidden_size (`int` or `Sequence[int]`): kept channels of the residual stream.
        num_hidden_layers (`int` or `Sequence[int]`): kept layers.
        num_attention_heads (`int` or `Sequence[int | Sequence[int]]`): kept heads, one entry for each kept layer, or
            a single number for all layers.
        intermediate_size (`int` or `Sequence[int | Sequence[int]]`): kept MLP neurons, likewise.

    Raises:
        SubnetError: if a dimension is empty, has negative, repeated or unsorted indices, or if there is not one entry
            for each kept layer.
    """

    hidden_size: Kept
    num_hidden_layers: Kept
    num_attention_heads: tuple[Kept, ...]
    intermediate_size: tuple[Kept, ...]

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers"):
            object.__setattr__(self, name, _canonical(getattr(self, name), name))
        for name in ("num_attention_heads", "intermediate_size"):
            value = getattr(self, name)
            if hasattr(value, "tolist"):  # arrays and tensors
                value = value.tolist()
            if _is_number(value):
                value = [value] * count(self.num_hidden_layers)
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise SubnetError(f"{name}: expected a number or one entry for each kept layer, got {value!r}")
            if len(value) != count(self.num_hidden_layers):
                raise SubnetError(
                    f"{name}: got {len(value)} entries for {count(self.num_hidden_layers)} kept layers; "
                    "give one for each kept layer, or a single number for all"
                )
            kept = tuple(_canonical(entry, f"{name} of layer {i}") for i, entry in zip(self.layers, value, strict=True))
            object.__setattr__(self, name, kept)

    @classmethod
    def full(cls, config: "PreTrainedConfig | Shape") -> "SubnetConfig":
        """Return the subnet that keeps everything."""
        shape = _shape(config)
        return cls(shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads, shape.intermediate_size)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Indices of the kept layers, ascending."""
        return indices(self.num_hidden_layers)

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the student."""
        return Shape(
            hidden_size=count(self.hidden_size),
            num_attention_heads=tuple(map(count, self.num_attention_heads)),
            intermediate_size=tuple(map(count, self.intermediate_size)),
        )

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same sizes."""
        shape = self.shape
        return len(set(shape.num_attention_heads)) == 1 and len(set(shape.intermediate_size)) == 1

    @property
    def digest(self) -> str:
        """A short name: the first 12 hexadecimal digits of the SHA-256 of its JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def validate(self, config: "PreTrainedConfig | Shape") -> None:
        """Check that a super-network has every entry this subnet keeps.

        Raises:
            SubnetError: names the dimension, the layer, the entry that was got and the allowed ones.
        """
        shape = _shape(config)
        _check_within(self.hidden_size, shape.hidden_size, "hidden_size", "channels")
        _check_within(self.num_hidden_layers, shape.num_hidden_layers, "num_hidden_layers", "layers")
        for position, layer in enumerate(self.layers):
            heads, neurons = shape.num_attention_heads[layer], shape.intermediate_size[layer]
            _check_within(self.num_attention_heads[position], heads, "num_attention_heads", "heads", layer)
            _check_within(self.intermediate_size[position], neurons, "intermediate_size", "neurons", layer)

    def with_layers(self, layers: Sequence[int]) -> "SubnetConfig":
        """Return the subnet with only some of its layers, given by their indices in the super-network."""
        positions = [position for position, layer in enumerate(self.layers) if layer in set(layers)]
        if len(positions) != len(layers):
            raise SubnetError(
                f"num_hidden_layers: got {list(layers)}, the subnet has {list(self.layers)}; use some of these"
            )
        return SubnetConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=tuple(layers),
            num_attention_heads=tuple(self.num_attention_heads[position] for position in positions),
            intermediate_size=tuple(self.intermediate_size[position] for position in positions),
        )

    def compose(self, inner: "SubnetConfig") -> "SubnetConfig":
        """Map `inner`, a subnet of this one's student, to a subnet of the super-network."""
        inner.validate(self.shape)
        positions = inner.layers

        def pick(outer: Sequence[Kept], chosen: Sequence[Kept]) -> list[Kept]:
            return [_compose(outer[position], kept) for position, kept in zip(positions, chosen, strict=True)]

        return SubnetConfig(
            hidden_size=_compose(self.hidden_size, inner.hidden_size),
            num_hidden_layers=_compose(self.num_hidden_layers, inner.num_hidden_layers),
            num_attention_heads=tuple(pick(self.num_attention_heads, inner.num_attention_heads)),
            intermediate_size=tuple(pick(self.intermediate_size, inner.intermediate_size)),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": list(self.num_attention_heads),
            "intermediate_size": list(self.intermediate_size),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SubnetConfig":
        expected = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
        if not isinstance(values, dict) or set(values) != expected:
            got = sorted(values) if isinstance(values, dict) else repr(values)
            raise SubnetError(f"a subnet has the keys {sorted(expected)}, got {got}")
        return cls(**values)

    def to_json(self) -> str:
        """Return one line of JSON, the same bytes for equal subnets."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

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


def count(kept: Kept) -> int:
    """Return the number of kept entries."""
    return kept if isinstance(kept, int) else len(kept)


def indices(kept: Kept) -> tuple[int, ...]:
    """Return the kept entries as indices."""
    return tuple(range(kept)) if isinstance(kept, int) else kept


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _canonical(kept: Any, name: str) -> Kept:
    if _is_number(kept):
        if kept < 1:
            raise SubnetError(f"{name}: a subnet keeps at least 1 entry, got {kept}")
        return int(kept)
    if isinstance(kept, Ascending) and kept:
        return len(kept) if kept[-1] == len(kept) - 1 else kept
    if hasattr(kept, "tolist"):  # arrays and tensors
        return _canonical(kept.tolist(), name)
    if not isinstance(kept, Iterable) or isinstance(kept, str):
        raise SubnetError(f"{name}: expected a number or ascending indices, got {kept!r}")
    chosen = tuple(kept)
    if not chosen:
        raise SubnetError(f"{name}: a subnet keeps at least 1 entry, got none")
    for index in chosen:
        if not _is_number(index):
            raise SubnetError(f"{name}: indices must be whole numbers, got {index!r}")
    chosen = tuple(map(int, chosen))
    if min(chosen) < 0:
        raise SubnetError(f"{name}: indices must not be negative, got {min(chosen)}")
    if len(set(chosen)) != len(chosen):
        repeated = next(index for index in chosen if chosen.count(index) > 1)
        raise SubnetError(f"{name}: every index may be kept once, got {repeated} more than once")
    if list(chosen) != sorted(chosen):
        raise SubnetError(f"{name}: indices must ascend, got {list(chosen[:8])}...; sort them")
    return len(chosen) if chosen[-1] == len(chosen) - 1 else chosen


def _check_within(kept: Kept, size: int, name: str, noun: str, layer: int | None = None) -> None:
    largest = kept - 1 if isinstance(kept, int) else kept[-1]
    if largest < size:
        return
    where = name if layer is None else f"{name} of layer {layer}"
    if isinstance(kept, int):
        problem = f"cannot keep {kept} {noun}, the super-network has {size}; keep 1 to {size}"
    else:
        problem = f"index {largest} is out of range, the super-network has {size} {noun}; use 0 to {size - 1}"
    raise SubnetError(f"{where}: {problem}. Was the subnet made for another model?")


def _compose(outer: Kept, inner: Kept) -> Kept:
    if isinstance(outer, int):
        return inner
    return tuple(outer[index] for index in indices(inner))


def _shape(config: "PreTrainedConfig | Shape") -> Shape:
    return config if isinstance(config, Shape) else Shape.from_config(config)
