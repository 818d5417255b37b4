"""Encode a teacher's distribution in few bytes: as samples from it, or as its likeliest entries.

Shapes: `N` rows (tokens), `L` tokens in a block, `V` entries of the vocabulary, `K` entries kept for a row.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from ...checks import check_integers
from ...errors import StoreError
from ...loss.targets import SparseTargets

_LEAST_HALF = -6e4  # stands for the logarithm of 0 in half precision


@dataclass(frozen=True)
class Samples:
    """Ids drawn from the teacher's distribution with replacement: an unbiased estimate of it (arXiv 2503.16870).

    A token takes `ceil(draws * ceil(log2(vocab_size)) / 8)` bytes for its packed ids, and 2 for the entropy of the
    whole distribution in half precision: 26 bytes for 12 draws from 50,304 entries.

    Args:
        vocab_size (`int`): entries of the teacher's vocabulary.
        draws (`int`, *optional*, defaults to 12): ids drawn for each token.
        seed (`int`, *optional*, defaults to 0): seed of the draws.

    Raises:
        StoreError: if a number is out of range.
    """

    kind: ClassVar = "sample"
    tensors: ClassVar = ("ids", "entropy")
    vocab_size: int
    draws: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, {"draws": 1}, error=StoreError)
        if not 0 <= self.seed < 2**64:
            raise StoreError(f"seed must be an integer from 0 to 2**64 - 1, got {self.seed}")

    @property
    def in_words(self) -> str:
        """The part of the teacher's distribution that is kept."""
        return f"{self.draws} samples of the teacher's distribution for each token"

    @property
    def bits(self) -> int:
        """Bits for an id."""
        return max(1, (self.vocab_size - 1).bit_length())

    @property
    def bytes_per_token(self) -> int:
        return -(-self.draws * self.bits // 8) + 2

    def numbers(self, block: int, length: int) -> torch.Tensor:
        """Random numbers of a block, `(L, draws)`, in [0, 1); they depend on the seed and the block's index alone."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, block], np.uint64)))
        return torch.from_numpy(generator.random((length, self.draws)))

    def encode(self, probabilities: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode probabilities `(N, V)`, with random numbers `(N, draws)` in double precision."""
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        ids = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        least = torch.finfo(probabilities.dtype).tiny
        entropy = -torch.linalg.vecdot(probabilities, probabilities.clamp(min=least).log_())
        return {"ids": pack_ids(ids.clamp_(max=self.vocab_size - 1), self.bits), "entropy": entropy.half()}

    def decode(self, encoded: dict[str, torch.Tensor]) -> SparseTargets:
        """Decode into targets: each draw is an entry of probability `1 / draws`."""
        ids = unpack_ids(encoded["ids"], self.bits, self.draws)
        probabilities = torch.full(ids.shape, 1 / self.draws, device=ids.device)
        return SparseTargets(ids, probabilities, tail=False, entropy=encoded["entropy"].float())


@dataclass(frozen=True)
class TopK:
    """The teacher's `k` likeliest tokens, and the probability of all others together.

    A token takes `2 * k` bytes for its ids (`4 * k` from 65,537 entries on) and `2 * (k + 1)` for log-probabilities in
    half precision: 4,098 bytes for `k=1024`. Half precision rounds a log-probability of -8 to -4 by at most 0.002,
    hence its probability by 0.2%; decoding normalizes all `k + 1` probabilities to sum to 1.

    Args:
        vocab_size (`int`): entries of the teacher's vocabulary.
        k (`int`, *optional*, defaults to 1024): tokens kept, at most the whole vocabulary.

    Raises:
        StoreError: if `k` is out of range.
    """

    kind: ClassVar = "top-k"
    tensors: ClassVar = ("ids", "log_probabilities")
    vocab_size: int
    k: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocab_size:
            raise StoreError(f"k must be from 1 to the {self.vocab_size} entries of the vocabulary, got {self.k}")

    @property
    def in_words(self) -> str:
        """The part of the teacher's distribution that is kept."""
        return f"the top {self.k} entries of the teacher's distribution, the others as one"

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint16 if self.vocab_size <= 2**16 else torch.uint32

    @property
    def bytes_per_token(self) -> int:
        return self._dtype.itemsize * self.k + 2 * (self.k + 1)

    def numbers(self, block: int, length: int) -> torch.Tensor:
        """No random numbers, `(L, 0)`: nothing is drawn."""
        return torch.empty(length, 0)

    def encode(self, probabilities: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode probabilities `(N, V)`."""
        values, ids = probabilities.topk(self.k, dim=-1)
        rest = probabilities.scatter(-1, ids, 0).sum(-1, keepdim=True)
        logarithms = torch.cat([values, rest], -1).log_().clamp_(min=_LEAST_HALF)
        return {"ids": ids.to(self._dtype), "log_probabilities": logarithms.half()}

    def decode(self, encoded: dict[str, torch.Tensor]) -> SparseTargets:
        """Decode into targets, with all other tokens as one entry."""
        probabilities = encoded["log_probabilities"].float().softmax(-1)[:, :-1]
        return SparseTargets(encoded["ids"].long(), probabilities, tail=self.k < self.vocab_size)


Encoding = Samples | TopK
ENCODINGS: dict[str, type[Samples] | type[TopK]] = {encoding.kind: encoding for encoding in (Samples, TopK)}


def pack_ids(ids: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack ids `(N, K)` into rows of bytes `(N, ceil(K * bits / 8))`, the lowest bit first."""
    places = torch.arange(bits, device=ids.device)
    row_bits = ((ids[..., None] >> places) & 1).flatten(1)
    row_bits = F.pad(row_bits, (0, -row_bits.shape[1] % 8))
    return (row_bits.unflatten(1, (-1, 8)) << torch.arange(8, device=ids.device)).sum(-1).to(torch.uint8)


def unpack_ids(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack the result of `pack_ids` into ids `(N, count)`, `int64`."""
    starts = torch.arange(count, device=packed.device) * bits
    size = (bits + 14) // 8  # bytes that an id may span
    packed = F.pad(packed, (0, size))
    words = sum(packed[:, starts // 8 + i].long() << 8 * i for i in range(size))
    return (words >> starts % 8) & ((1 << bits) - 1)
