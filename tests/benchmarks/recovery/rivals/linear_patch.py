"""LinearPatch: hidden states scaled in a Hadamard basis where layers were removed (arXiv 2505.24680).

`P = H D H^T`, with `H` an orthonormal Hadamard matrix and `D` the ratio of the mean absolute values of the teacher's
hidden states after and before the gap, in the basis of `H`: means over the tokens of a block, then the mean of the
ratios over blocks. The patch follows the layer before the gap and adds a square matrix of the channels. Without the
distillation that the paper also describes.
"""

from typing import Any

import torch

from .cut import Cut
from .gap import boundary, gaps, insert


def patch(cut: Cut, student: Any) -> None:
    """Insert the patch of every gap into a student."""
    for gap in gaps(cut):
        basis = hadamard(cut.teacher.config.hidden_size)
        ratios = [
            (after @ basis).abs().mean(1) / (before @ basis).abs().mean(1) for before, after, _ in boundary(cut, gap)
        ]
        insert(cut, student, gap, basis @ torch.cat(ratios).mean(0).diag() @ basis.T)


def hadamard(size: int) -> torch.Tensor:
    """An orthonormal Hadamard matrix: Sylvester's and Paley's constructions and their Kronecker products.

    Raises:
        ValueError: if these give none of this size.
    """
    return _signs(size) / size**0.5


def _signs(size: int) -> torch.Tensor:
    if size <= 2:
        return torch.ones(1, 1) if size == 1 else torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    prime = size - 1
    if size % 4 == 0 and all(prime % factor for factor in range(2, int(prime**0.5) + 1)):
        return _paley(prime)
    for factor in (2, 12, 20):
        if size % factor == 0 and size > factor:
            return torch.kron(_signs(factor), _signs(size // factor))
    raise ValueError(f"no Hadamard matrix of size {size} is known here")


def _paley(prime: int) -> torch.Tensor:
    """The Hadamard matrix of size `prime + 1`, for primes of the form `4 n + 3`."""
    squares = {i * i % prime for i in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)])
    places = torch.arange(prime)
    skew = torch.zeros(prime + 1, prime + 1)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = character[(places[None] - places[:, None]) % prime]
    return skew + torch.eye(prime + 1)
