"""Windows of token ids of different lengths, each with the tokens that are predicted in it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100
"""Target of a position that predicts nothing."""


@dataclass(frozen=True)
class Window:
    """A part of a document.

    Args:
        inputs (`numpy.ndarray`): token ids that the model reads.
        targets (`numpy.ndarray`): token ids that its last positions predict, as many as there are.
        document (`int`): number of the document.
    """

    inputs: np.ndarray
    targets: np.ndarray
    document: int


class Windows:
    """Windows, the longest first; a slice of them is a tensor of their inputs, padded at the right.

    Causal models do not look to the right, so padding there changes nothing.

    Args:
        windows (`Iterable[Window]`): the windows.
    """

    def __init__(self, windows: Iterable[Window]):
        self._windows = sorted(windows, key=lambda window: -len(window.inputs))

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, which: slice) -> torch.Tensor:
        """Inputs of a slice, `int64`, `(windows, longest)`."""
        return _padded([window.inputs for window in self._windows[which]], 0)

    def targets(self, which: slice) -> torch.Tensor:
        """Targets of the positions of a slice, `IGNORED` where there is none."""
        found = self._windows[which]
        skipped = [len(window.inputs) - len(window.targets) for window in found]
        rows = [
            np.pad(each.targets, (skip, 0), constant_values=IGNORED) for each, skip in zip(found, skipped, strict=True)
        ]
        return _padded(rows, IGNORED)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each window's inputs."""
        return [len(window.inputs) for window in self._windows]

    @property
    def documents(self) -> list[int]:
        """Number of each window's document."""
        return [window.document for window in self._windows]

    @property
    def num_targets(self) -> list[int]:
        """Number of tokens that are predicted in each window."""
        return [len(window.targets) for window in self._windows]

    @property
    def id_range(self) -> tuple[int, int]:
        """The smallest and the largest token id."""
        parts = [part for window in self._windows for part in (window.inputs, window.targets)]
        return min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)


def _padded(rows: list[np.ndarray], value: int) -> torch.Tensor:
    found = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(found)


def rolling_windows(ids: Sequence[int], length: int, prefix: int | None, document: int = 0) -> Iterator[Window]:
    """Windows of a document in which each of its tokens is predicted once, as lm-evaluation-harness cuts them.

    Windows do not overlap, but for the last one: it reads as many tokens before those it predicts as find room.

    Args:
        ids (`Sequence[int]`): token ids of the document.
        length (`int`): most tokens that the model reads in a window.
        prefix (`int`, *optional*): a token before the first one. Without it, the first token is not predicted.
        document (`int`, *optional*, defaults to 0): number of the document.
    """
    source = np.asarray(ids if prefix is None else [prefix, *ids], dtype=np.int32)
    last = len(source) - 1
    for start in range(0, last, length):
        end = min(start + length, last)
        yield Window(source[max(0, end - length) : end], source[start + 1 : end + 1], document)


def whole_windows(ids: np.ndarray, length: int) -> Iterator[Window]:
    """Windows of `length` tokens side by side, whose first token is not predicted; what is left at the end is dropped.

    Args:
        ids (`numpy.ndarray`): token ids.
        length (`int`): tokens of a window.
    """
    for block in ids[: len(ids) // length * length].reshape(-1, length):
        yield Window(block[:-1], block[1:], 0)
