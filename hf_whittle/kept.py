"""Kept entries of a dimension."""

import json
from collections.abc import Iterable
from itertools import groupby
from numbers import Integral
from typing import Any, TypeGuard

from .architectures.dimensions import Dimension
from .errors import SubnetError

Kept = int | tuple[int, ...]
"""Kept entries of a dimension: the first `k`, or those with these indices."""


class Ascending(tuple[int, ...]):
    """Indices known to be whole numbers of at least 0, strictly ascending; `SubnetConfig` does not check them again."""

    __slots__ = ()


def count(kept: Kept) -> int:
    """Return the number of kept entries."""
    return kept if isinstance(kept, int) else len(kept)


def is_part(kept: Kept | None, total: int) -> TypeGuard[Kept]:
    """Whether kept entries are a part of the `total` entries of a dimension; all are kept for `None`."""
    return kept is not None and count(kept) < total


def indices(kept: Kept) -> tuple[int, ...]:
    """Return the kept entries as indices."""
    return tuple(range(kept)) if isinstance(kept, int) else kept


def is_number(value: Any) -> bool:
    """Whether a value is a whole number, but no truth value."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def canonical(kept: Any, name: str) -> Kept:
    """Kept entries as a number, if they are the first ones, or else as indices; `name` says in errors what they are of.

    Raises:
        SubnetError: if there are none, or if they are not whole numbers of at least 0, strictly ascending.
    """
    if is_number(kept):
        if kept < 1:
            raise SubnetError(f"{name}: a subnet keeps at least 1 entry, got {kept}")
        return int(kept)
    if isinstance(kept, Ascending) and kept:
        return len(kept) if kept[-1] == len(kept) - 1 else kept
    if hasattr(kept, "tolist"):  # arrays and tensors
        return canonical(kept.tolist(), name)
    if not isinstance(kept, Iterable) or isinstance(kept, str):
        raise SubnetError(f"{name}: expected a number or ascending indices, got {kept!r}")
    chosen = tuple(kept)
    if not chosen:
        raise SubnetError(f"{name}: a subnet keeps at least 1 entry, got none")
    for index in chosen:
        if not is_number(index):
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


def check_units(kept: Kept, dimension: Dimension) -> None:
    """Raise `SubnetError` unless entries of a dimension are kept in whole units."""
    unit = dimension.unit
    chosen = indices(kept)
    if unit > 1 and (
        len(chosen) % unit or any(index // unit != chosen[i - i % unit] // unit for i, index in enumerate(chosen))
    ):
        raise SubnetError(
            f"{dimension.name}: {dimension.label} are kept in whole groups of {unit}, 0 to {unit - 1}, {unit} to "
            f"{2 * unit - 1} and so on, got {kept if isinstance(kept, int) else list(kept)}"
        )


def check_within(kept: Kept, size: int, dimension: Dimension, layer: int | None = None) -> None:
    """Raise `SubnetError` unless a super-network whose dimension has this size has all kept entries."""
    largest = kept - 1 if isinstance(kept, int) else kept[-1]
    if largest < size:
        return
    where = dimension.name if layer is None else f"{dimension.name} of layer {layer}"
    if isinstance(kept, int):
        problem = f"cannot keep {kept} {dimension.label}, the super-network has {size}; keep 1 to {size}"
    else:
        problem = (
            f"index {largest} is out of range, the super-network has {size} {dimension.label}; use 0 to {size - 1}"
        )
    raise SubnetError(f"{where}: {problem}. Was the subnet made for another model?")


def composed(outer: Kept, inner: Kept) -> Kept:
    """Map kept entries of a student's dimension to those of the super-network that `outer` was kept of."""
    if isinstance(outer, int):
        return inner
    return tuple(outer[index] for index in indices(inner))


def as_runs(kept: tuple[int, ...]) -> list[int | list[int]]:
    """Ascending indices in which each run of three or more neighbours is a list of its first and last."""
    found: list[int | list[int]] = []
    for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0]):
        own = [index for _, index in run]
        found += [[own[0], own[-1]]] if len(own) > 2 else own
    return found


def from_runs(runs: list[Any]) -> list[Any]:
    """Indices from what `as_runs` made of them; anything else stays, to be refused as an index.

    Raises:
        SubnetError: if a list is not the first and the last index of a run.
    """
    found: list[Any] = []
    for run in runs:
        if isinstance(run, list) and not (len(run) == 2 and all(map(is_number, run)) and run[0] <= run[1]):
            raise SubnetError(f"a run of indices is a list of its first and last, got {run!r}")
        found += range(run[0], run[1] + 1) if isinstance(run, list) else [run]
    return found


def json_of(kept: Any, texts: dict[int, str]) -> str:
    """JSON of kept entries, or of a list of these.

    Args:
        kept (`int`, `tuple` or `list`): what is written.
        texts (`dict[int, str]`): JSON by the identity of what was written, to which this one's is added.
    """
    if isinstance(kept, list):
        return f"[{','.join([json_of(each, texts) for each in kept])}]"
    if id(kept) not in texts:
        texts[id(kept)] = json.dumps(kept, separators=(",", ":"))
    return texts[id(kept)]
