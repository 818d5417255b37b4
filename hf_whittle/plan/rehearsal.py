"""Rehearsals: run code on tensors that have shapes but no memory, and count the bytes that it would hold."""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig

from ..compat.torch import rehearsing
from ..compat.transformers import attention_kernel

Found = TypeVar("Found")

_ROWS, _NUMBER, _INDEX = "aten::nonzero", "aten::_local_scalar_dense", "aten::index.Tensor"
"""Operations whose result depends on values."""


class Rehearsal:
    """Bytes that are held, the most that were since `restart`, and the most that were since `begin`.

    Args:
        rows (`int`): rows that a `nonzero` finds, at most.
    """

    def __init__(self, rows: int):
        self.held = self.peak = self.highest = 0
        self._rows = rows
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __call__(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Give the result of an operation, and count its memory."""
        if operation.name() == _NUMBER:
            return 0.0
        if operation.name() == _ROWS:
            size = min(args[0].numel(), self._rows)
            found: Any = torch.zeros(size, args[0].ndim, dtype=torch.long)
        elif operation.name() == _INDEX and any(_is_mask(index) for index in args[1]):
            found = torch.empty_like(args[0])  # all rows
        else:
            found = operation(*args, **kwargs)
        for tensor in found if isinstance(found, list | tuple) else (found,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.held += size
        self.peak, self.highest = max(self.peak, self.held), max(self.highest, self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size

    def begin(self) -> int:
        """Forget all peaks, and return what is held."""
        self.highest = self.held
        return self.restart()

    def restart(self) -> int:
        """Set the peak back to what is held, and return that."""
        self.peak = self.held
        return self.held


@contextlib.contextmanager
def rehearse(rows: int = 2**62) -> Iterator[Rehearsal]:
    """Inside the block, tensors have no memory.

    Args:
        rows (`int`, *optional*): rows that a `nonzero` finds, at most; all by default.
    """
    rehearsal = Rehearsal(rows)
    with rehearsing(rehearsal):
        yield rehearsal


def rehearsed_once(measure: Callable[..., Found]) -> Callable[..., Found]:
    """Let a function that rehearses do so once for the same arguments, as further plans ask for most of them again.

    Args:
        measure (`Callable`): a function of configurations, of objects whose property `settings` determines them, and
            of values.
    """
    known: dict[Any, Found] = {}

    @functools.wraps(measure)
    def remembered(*given: Any) -> Found:
        key = (torch.get_num_threads(), *map(_settings, given))
        if key not in known:
            known[key] = measure(*given)
        return known[key]

    return remembered


def _settings(given: Any) -> Any:
    if isinstance(given, PreTrainedConfig):
        return type(given), attention_kernel(given), given.to_json_string(use_diff=False)
    return getattr(given, "settings", given)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
