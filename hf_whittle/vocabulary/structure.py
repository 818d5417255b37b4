"""The structure of a tokenizer: tokens that every text needs, and the tokens that each of the others is joined from.

It is read from the JSON of the `tokenizers` library.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import VocabularyError

KINDS = ("BPE", "Unigram")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Tokens of single bytes, in tokenizers that fall back to them."""


def bytes_of(character: str) -> list[str]:
    """The tokens of a character's bytes in UTF-8."""
    return [BYTES[byte] for byte in character.encode("utf-8", errors="surrogatepass")]


@dataclass(frozen=True)
class Structure:
    """Tokens of a tokenizer by id, and what they are made of.

    Args:
        tokens (`dict[int, str]`): the tokens, as the tokenizer spells them.
        required (`frozenset[int]`): tokens that always stay: special and added ones, bytes and characters, and all that
            these are made of.
        parts (`dict[int, tuple[int, int]]`): the two tokens that the last merge of a token joins, if merges make it.
        order (`dict[int, float]`): how late each token comes: the rank of its merge, or minus its log-probability in a
            Unigram tokenizer; infinite if neither is known.
    """

    tokens: dict[int, str]
    required: frozenset[int]
    parts: dict[int, tuple[int, int]]
    order: dict[int, float]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Structure":
        """Read the structure of a tokenizer.

        Raises:
            VocabularyError: if it is no fast tokenizer, or of a kind whose tokens cannot be dropped without a loss of
                text.
        """
        settings = settings_of(tokenizer)
        model = settings["model"]
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        own: dict[str, int] = _vocabulary(model)
        parts, order = _merged(model, own) if model["type"] == "BPE" else ({}, _by_score(model))
        found = cls(tokens, frozenset(), parts, {index: order.get(index, math.inf) for index in tokens})
        required = {*_fixed(settings), *tokenizer.all_special_ids, *_base(settings, own)} & tokens.keys()
        return replace(found, required=frozenset(found.closed(required)))

    @property
    def optional(self) -> list[int]:
        """Tokens that may be dropped, ascending."""
        return sorted(self.tokens.keys() - self.required)

    def with_ancestors(self, index: int, known: set[int]) -> Iterator[int]:
        """Yield the tokens that a token is made of, directly or not, then the token itself; none that is known.

        Each is added to `known`.
        """
        waiting = [index]
        while waiting:
            missing = [part for part in self.parts.get(waiting[-1], ()) if part not in known]
            if missing:
                waiting += missing
                continue
            found = waiting.pop()
            if found not in known:
                known.add(found)
                yield found

    def closed(self, ids: Iterable[int]) -> set[int]:
        """Tokens, and all that they are made of."""
        known: set[int] = set()
        for index in ids:
            known.update(self.with_ancestors(index, known))
        return known

    def name(self, index: int) -> str:
        """A token and its id, for errors."""
        return f"{self.tokens[index]!r} (id {index})"


def settings_of(tokenizer: Any) -> dict[str, Any]:
    """Read the JSON of a tokenizer.

    Raises:
        VocabularyError: if it is no fast tokenizer, or its model is not in `KINDS`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabularyError(
            f"only a fast tokenizer can be pruned, got a {type(tokenizer).__name__}; load one with AutoTokenizer"
        )
    settings: dict[str, Any] = json.loads(backend.to_str())
    kind = settings["model"].get("type")
    if kind not in KINDS:
        raise VocabularyError(
            f"tokenizers of kind {' and '.join(KINDS)} can be pruned, got {kind}, which could not write every text "
            "without some of its tokens"
        )
    return settings


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Token ids of a model, without added tokens that it does not have itself."""
    if model["type"] == "BPE":
        return dict(model["vocab"])
    return {token: index for index, (token, _) in enumerate(model["vocab"])}


def renumbered(value: Any, number: Callable[[int], int]) -> Any:
    """A post-processor with other token ids, given as JSON.

    Args:
        value: the JSON of a post-processor, or `None`.
        number (`Callable[[int], int]`): gives the new id of a token.
    """
    if value is None:
        return None
    changed = dict(value)
    if value["type"] == "Sequence":
        changed["processors"] = [renumbered(each, number) for each in value["processors"]]
    elif value["type"] == "TemplateProcessing":
        changed["special_tokens"] = {
            name: {**token, "ids": [number(index) for index in token["ids"]]}
            for name, token in value["special_tokens"].items()
        }
    for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if name in value:
            changed[name] = [value[name][0], number(value[name][1])]
    return changed


def _fixed(settings: dict[str, Any]) -> set[int]:
    """Ids of added tokens, of the unknown token, of padding and of a post-processor's tokens."""
    model = settings["model"]
    found = {token["id"] for token in settings["added_tokens"]}

    def note(index: int) -> int:
        found.add(index)
        return index

    renumbered(settings["post_processor"], note)
    if settings["padding"] is not None:
        found.add(settings["padding"]["pad_id"])
    unknown = model["vocab"].get(model["unk_token"]) if model["type"] == "BPE" else model["unk_id"]
    return found if unknown is None else found | {unknown}


def _base(settings: dict[str, Any], own: dict[str, int]) -> Iterator[int]:
    """Ids of the tokens of which every text can be made: bytes, or else all characters."""
    model = settings["model"]
    if model.get("byte_fallback") and all(byte in own for byte in BYTES):
        yield from (own[byte] for byte in BYTES)
        replaced = set(_replaced(settings["decoder"]))  # bytes of a character for spaces would not become a space
        spelled = set("".join(BYTES)) if model["type"] == "Unigram" else set()  # see `_OF_LITERAL` in pruning
        yield from (own[token] for token in replaced | spelled if token in own)
        return
    before, after = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters = {token for token in own if len(token.removeprefix(before).removesuffix(after)) == 1}
    yield from (own[token] for token in characters)
    if model["type"] == "Unigram" or model["ignore_merges"]:  # such a token may have characters that no other has
        yield from (index for token, index in own.items() if not set(token) <= characters)


def _replaced(decoder: Any) -> Iterator[str]:
    """Characters for which a decoder, given as JSON, writes others."""
    if decoder is None:
        return
    for each in decoder.get("decoders", ()):
        yield from _replaced(each)
    if decoder["type"] == "Replace":
        yield from decoder["pattern"].get("String", "")
    if decoder["type"] == "Metaspace":
        yield decoder["replacement"]


def _by_score(model: dict[str, Any]) -> dict[int, float]:
    return {index: -score for index, (_, score) in enumerate(model["vocab"])}


Merge = tuple[int, str, str]
"""Rank, left token and right token."""


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The two tokens of each merge of a BPE model, in the order of their ranks."""
    pairs: list[tuple[str, str]] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def product(model: dict[str, Any], left: str, right: str) -> str:
    """The token that a merge of a BPE model makes."""
    return left + right[len(model["continuing_subword_prefix"] or "") :]


def _merged(model: dict[str, Any], own: dict[str, int]) -> tuple[dict[int, tuple[int, int]], dict[int, float]]:
    """The parts of each token that merges make, and the rank of the merge that joins them."""
    merges = merges_of(model)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ways: dict[str, list[Merge]] = defaultdict(list)
    for rank, (left, right) in enumerate(merges):
        ways[product(model, left, right)].append((rank, left, right))
    parts, order = {}, {}
    for token, found in ways.items():
        rank, left, right = found[0] if len(found) == 1 else _last_merge(model, token, found, ranks)
        parts[own[token]] = own[left], own[right]
        order[own[token]] = float(rank)
    return parts, order


def _symbols(model: dict[str, Any], token: str) -> list[str]:
    """The characters that BPE merges to a token, with the marks of words that a model may have."""
    before, after = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    starts, ends = bool(before) and token.startswith(before), bool(after) and token.endswith(after)
    letters = token.removeprefix(before).removesuffix(after)
    first, last = before if starts else "", after if ends else ""
    return [
        (before if place else first) + letter + (last if place == len(letters) - 1 else "")
        for place, letter in enumerate(letters)
    ]


def _last_merge(model: dict[str, Any], token: str, ways: Iterable[Merge], ranks: dict[tuple[str, str], int]) -> Merge:
    """The merge by which BPE completes a token, of several that would; the first if it reaches the token by none."""
    symbols = _symbols(model, token)
    while len(symbols) > 2:
        pairs = list(itertools.pairwise(symbols))
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairs))
        if rank == len(ranks):
            break
        symbols[place : place + 2] = [product(model, *pairs[place])]
    return next((way for way in ways if list(way[1:]) == symbols), next(iter(ways)))
