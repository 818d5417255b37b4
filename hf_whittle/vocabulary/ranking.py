"""Orders of tokens, each prefix of which is the vocabulary of a complete tokenizer."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .structure import Structure, bytes_of

_TEXTS = 256  # tokenized at a time
_OF_BYTES = 1e6
"""Minus the log-probability of a character that has no token of its own, in the choice of pieces."""


def rank_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] | Mapping[int, int] | None = None
) -> list[int]:
    """Order the tokens of a tokenizer so that the first `k` are complete for every `k` from `minimum_size` on.

    Tokens that always stay come first. The others follow in the order of their merges (of their probabilities, in a
    Unigram tokenizer), or by their use on given texts: from the whole vocabulary, the token whose loss makes the texts
    least longer is dropped first, its occurrences then count for the tokens it is made of, and so on.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast tokenizer of BPE or Unigram.
        texts (`Iterable[str]` or `Mapping[int, int]`, *optional*): texts like those that the tokenizer is for, or how
            often each token occurs in them; some megabytes are enough.

    Returns:
        `list[int]`: the ids of all tokens.

    Raises:
        VocabularyError: if the tokenizer is of a kind that cannot be pruned.
        DataError: if the texts are empty, or one string.
    """
    structure = Structure.of(tokenizer)
    first = sorted(structure.required)
    if texts is None:
        known = set(first)
        order = sorted(structure.optional, key=lambda index: (structure.order[index], index))
        return [*first, *itertools.chain.from_iterable(structure.with_ancestors(index, known) for index in order)]
    counts = _counted(tokenizer, texts)
    return [*first, *reversed(list(_Dropping(structure, counts)))]


def _counted(tokenizer: Any, texts: Iterable[str] | Mapping[int, int]) -> Counter[int]:
    """Occurrences of each token: those given, or those in texts, without special tokens around them.

    Raises:
        DataError: if there are none, or the texts are one string.
    """
    if isinstance(texts, str):
        raise DataError("texts is one string, each character of which would be a text; give a list of texts")
    if isinstance(texts, Mapping):
        counts = Counter(texts)
    else:
        counts, remaining = Counter(), iter(texts)
        while some := list(itertools.islice(remaining, _TEXTS)):
            for encoding in tokenizer.backend_tokenizer.encode_batch(some, add_special_tokens=False):
                counts.update(encoding.ids)
    if not any(counts.values()):
        raise DataError("there is no text to rank tokens by; give texts, or leave them out to rank by merges")
    return counts


class _Dropping:
    """Iterates over the tokens that may be dropped, in the order in which they are.

    A token is dropped once no other is made of it, the one whose loss costs least first. The cost is the number of
    tokens by which texts become longer. It only grows, so that one computed before is a lower bound.
    """

    def __init__(self, structure: Structure, counts: Counter[int]):
        self._structure, self._counts = structure, Counter(counts)
        self._needed = Counter(itertools.chain.from_iterable(structure.parts.values()))
        self._ids = {token: index for index, token in structure.tokens.items()}  # without those that were dropped
        self._is_scored = not structure.parts

    def __iter__(self) -> Iterator[int]:
        optional = set(self._structure.optional)
        heap = [self._entry(index) for index in optional if not self._needed[index]]
        heapq.heapify(heap)
        while heap:
            entry = heapq.heappop(heap)
            index = entry[2]
            current = self._entry(index)
            if current > entry:
                heapq.heappush(heap, current)
                continue
            yield index
            if self._counts[index]:
                for piece in self._pieces(index):
                    self._counts[piece] += self._counts[index]
            del self._ids[self._structure.tokens[index]]
            for part in self._structure.parts.get(index, ()):
                self._needed[part] -= 1
                if not self._needed[part] and part in optional:
                    heapq.heappush(heap, self._entry(part))

    def _entry(self, index: int) -> tuple[int, float, int]:
        """Cost of dropping a token, minus its place in the order of merges, and the token."""
        count = self._counts[index]
        cost = count * (len(self._pieces(index)) - 1) if count else 0
        return cost, -self._structure.order[index], index

    def _pieces(self, index: int) -> list[int]:
        """Tokens into which a token falls when it is dropped."""
        parts = self._structure.parts.get(index)
        return list(parts) if parts else self._best_pieces(self._structure.tokens[index])

    def _best_pieces(self, token: str) -> list[int]:
        """The most probable of the pieces that are left for a token, or the fewest if they have no probability."""
        best: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]
        for end in range(1, len(token) + 1):
            in_bytes = [self._ids[byte] for byte in bytes_of(token[end - 1]) if byte in self._ids]
            ways = [(best[end - 1][0] + _OF_BYTES, end - 1, in_bytes)]
            for start in range(end):
                piece = self._ids.get(token[start:end])
                if piece is not None and end - start < len(token):
                    ways.append((best[start][0] + self._score(piece), start, [piece]))
            best.append(min(ways, key=lambda way: way[0]))
        pieces: list[int] = []
        end = len(token)
        while end:
            _, start, last = best[end]
            pieces, end = last + pieces, start
        return pieces

    def _score(self, piece: int) -> float:
        return min(self._structure.order[piece], _OF_BYTES) if self._is_scored else 1.0
