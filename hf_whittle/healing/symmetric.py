"""Sums of products of features, of which one half is computed and kept."""

import torch


class SymmetricSums:
    """The symmetric matrix of sums of products of features over tokens.

    It is kept as blocks of rows, each with the columns up to its own last one: little more than half of the matrix.

    Args:
        width (`int`): number of features.
        device (`torch.device`): where the sums are kept.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): their precision.
    """

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype = torch.float32):
        self.width = width
        self._blocks = [
            (first, last, torch.zeros(last - first, last, dtype=dtype, device=device)) for first, last in _bounds(width)
        ]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The blocks."""
        return [block for *_, block in self._blocks]

    @staticmethod
    def numbers(width: int) -> int:
        """Numbers that are kept for a number of features; each takes a product for each token."""
        return sum((last - first) * last for first, last in _bounds(width))

    def add(self, features: torch.Tensor) -> None:
        """Add the products of `(tokens, features)`."""
        for first, last, block in self._blocks:
            rows, columns = features[:, first:last].T, features[:, :last]
            if block.dtype == features.dtype:
                torch.addmm(block, rows, columns, out=block)
            else:
                block += rows @ columns

    def __call__(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """A part of the matrix, `(rows, columns)`.

        Args:
            rows (`torch.Tensor`): ascending indices of features.
            columns (`torch.Tensor`): ascending indices of features.
        """
        part = self._blocks[0][2].new_empty(len(rows), len(columns))
        for first, last, block in self._blocks:
            own, above = (slice(*_between(indices, first, last)) for indices in (rows, columns))
            left = slice(0, above.stop)
            part[own, left] = block[rows[own] - first][:, columns[left]]
            before = slice(0, own.start)
            part[before, above] = block[columns[above] - first][:, rows[before]].T
        return part

    def full(self) -> torch.Tensor:
        """The whole matrix."""
        every = torch.arange(self.width, device=self._blocks[0][2].device)
        return self(every, every)


def _bounds(width: int, blocks: int = 8) -> list[tuple[int, int]]:
    size = -(-width // blocks)
    return [(first, min(first + size, width)) for first in range(0, width, size)]


def _between(indices: torch.Tensor, first: int, last: int) -> tuple[int, int]:
    """Positions of the ascending indices from `first` to before `last`."""
    bounds = torch.tensor([first, last], device=indices.device)
    start, end = torch.searchsorted(indices, bounds).tolist()
    return start, end
