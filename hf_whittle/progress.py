"""Progress of long work on stderr: a bar on a terminal or in a notebook, and elsewhere a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm.auto import tqdm

LINES_EVERY = 30.0
"""Least seconds between two lines; work that is shorter says nothing."""


def progress_bar(
    items: Iterable[Any] | None = None,
    desc: str = "",
    *,
    total: float | None = None,
    initial: int = 0,
    unit: str = "it",
    disable: bool = False,
    leave: bool = True,
) -> Any:
    """A progress bar with the time left, or lines where nobody could see a bar move, such as in a file.

    Args:
        items (`Iterable`, *optional*): items to go through; without them, the caller calls `update`.
        desc (`str`): name of the work.
        total (`float`, *optional*): number of items; that of `items` by default.
        initial (`int`, *optional*, defaults to 0): items done before.
        unit (`str`): name of an item.
        disable (`bool`, *optional*, defaults to `False`): whether to show nothing.
        leave (`bool`, *optional*, defaults to `True`): whether the bar stays, or a last line is written, at the end.

    Returns:
        A `tqdm`, or an object with its `update`, `set_postfix`, `close` and `n`.
    """
    kind: Any = tqdm if _shows_bars() else Lines
    return kind(items, desc, total=total, initial=initial, unit=unit, disable=disable, leave=leave)


def _shows_bars() -> bool:
    in_notebook = any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
    return in_notebook or sys.stderr.isatty()


class Lines:
    """Writes how far work has come, at most one line in `LINES_EVERY` seconds; arguments as for `progress_bar`."""

    def __init__(
        self,
        items: Iterable[Any] | None,
        desc: str,
        *,
        total: float | None,
        initial: int,
        unit: str,
        disable: bool,
        leave: bool,
    ):
        self.n, self._items, self._desc, self._initial = initial, items, desc, initial
        self._total = len(items) if total is None and isinstance(items, Sized) else total
        self._units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self._is_open, self._leave, self._said = not disable, leave, -1
        self._postfix: dict[str, Any] = {}
        self._started = self._last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        assert self._items is not None
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def set_postfix(self, values: dict[str, Any] | None = None, refresh: bool = True, **more: Any) -> None:
        """Add values to the next line."""
        self._postfix = {**(values or {}), **more}

    def update(self, n: int = 1) -> None:
        """Count items that are done."""
        self.n += n
        now = time.monotonic()
        if self._is_open and now - self._last >= LINES_EVERY:
            self._say(now)

    def close(self) -> None:
        """Write a last line if there were others, and more was done since."""
        if self._is_open and self._leave and self._said not in (-1, self.n):
            self._say(time.monotonic())
        self._is_open = False

    def _say(self, now: float) -> None:
        self._last, self._said = now, self.n
        print(", ".join(self._parts(now - self._started)), file=sys.stderr, flush=True)

    def _parts(self, seconds: float) -> Iterator[str]:
        done, elapsed = self.n - self._initial, tqdm.format_interval(seconds)
        if not self._total:
            yield f"{self._desc}: {self.n:,} {self._units} in {elapsed}"
        else:
            yield f"{self._desc}: {self.n:,} of {self._total:,} {self._units} in {elapsed}"
            if done and self.n < self._total:
                yield f"{tqdm.format_interval(seconds * (self._total - self.n) / done)} left"
        yield from (f"{name} {value}" for name, value in self._postfix.items())
