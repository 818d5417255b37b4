"""Tokenizers with a part of their tokens: a stock fast tokenizer that still writes every text."""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..errors import VocabularyError
from ..files.text import read_json, write_json
from ..files.tokenizer import VOCABULARY_FILES
from ..kept import Kept, canonical, indices
from .structure import BYTES, Structure, merges_of, product, renumbered, settings_of

_TOKENIZER_FILE = "tokenizer.json"
_SET_BY_CALLS = ("truncation", "padding")
_OF_LITERAL = -1e6
"""Log-probability of a byte's token in a Unigram model, where a text that spells its name would have it as a piece."""


def prune_tokenizer(tokenizer: PreTrainedTokenizerBase, kept_ids: Kept | Iterable[int]) -> PreTrainedTokenizerBase:
    """Make a tokenizer of the same class that has a part of the tokens; the new id of each is its place among them.

    Every text that the tokenizer decodes to itself is decoded to itself by the new one, too. A text whose tokens are
    all kept has the same tokens as before.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast tokenizer of BPE (byte-level, with byte fallback or neither) or
            Unigram.
        kept_ids (`int` or `Iterable[int]`): ascending ids of the tokens to keep, or the number of first ones. Ids that
            belong to no token, of padding of a model's matrices, count as places without a token.

    Returns:
        `PreTrainedTokenizerBase`: the tokenizer, as loaded from files; its `name_or_path` is empty.

    Raises:
        VocabularyError: if the tokens are not complete (see `closed`), the tokenizer is of another kind, or its class
            does not load what it saves.
        SubnetError: if the ids do not ascend.
    """
    kept = indices(canonical(kept_ids, "kept_ids"))
    structure = Structure.of(tokenizer)
    check_closed(structure, kept)
    new = {index: place for place, index in enumerate(kept)}
    settings = _pruned(settings_of(tokenizer), new)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in VOCABULARY_FILES:  # of the whole vocabulary
            (Path(folder) / name).unlink(missing_ok=True)
        (Path(folder) / _TOKENIZER_FILE).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        _renumber_config(Path(folder) / TOKENIZER_CONFIG_FILE, new.__getitem__)
        sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
        pruned: Any = type(tokenizer).from_pretrained(folder, **sides)
    _check_loaded(pruned, settings)
    pruned.name_or_path = pruned.init_kwargs["name_or_path"] = ""
    return pruned


def closed(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[int]:
    """Complete a set of token ids to one that `prune_tokenizer` accepts.

    It adds special and added tokens, single bytes or characters, and for each token all those that merges make it of.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast tokenizer.
        ids (`Iterable[int]`): ids in any order; those that belong to no token stay.

    Returns:
        `list[int]`: the ids, ascending.

    Raises:
        VocabularyError: if the tokenizer is of a kind that cannot be pruned.
    """
    structure = Structure.of(tokenizer)
    return sorted(structure.closed((*structure.required, *map(int, ids))))


def minimum_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens that always stay: special and added ones, and single bytes or characters."""
    return len(Structure.of(tokenizer).required)


def check_closed(structure: Structure, kept: Iterable[int]) -> None:
    """Raise `VocabularyError` unless the kept ids have all tokens that always stay, and those that others need."""
    known = set(kept)
    advice = "add what is missing with closed(tokenizer, kept_ids)"
    missing = sorted(structure.required - known)
    if missing:
        raise VocabularyError(
            f"the kept ids lack {len(missing)} of the {len(structure.required)} tokens that always stay, special and "
            f"added ones and single bytes or characters, first {structure.name(missing[0])}; {advice}"
        )
    for index in sorted(known):
        for part in structure.parts.get(index, ()):
            if part not in known:
                raise VocabularyError(
                    f"the kept ids have {structure.name(index)}, but not {structure.name(part)}, which it is merged "
                    f"from; {advice}"
                )


def _pruned(settings: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """The JSON of a tokenizer with the tokens that have a new id."""
    model = dict(settings["model"])
    if model["type"] == "BPE":
        model["vocab"] = {token: new[index] for token, index in model["vocab"].items() if index in new}
        known = model["vocab"].keys()
        model["merges"] = [
            merge for merge in merges_of(model) if known >= set(merge) and product(model, *merge) in known
        ]
    else:
        is_part, literal = len(new) < len(model["vocab"]), set(BYTES) if model["byte_fallback"] else set()
        model["vocab"] = [
            [token, _OF_LITERAL if is_part and token in literal else score]
            for index, (token, score) in enumerate(model["vocab"])
            if index in new
        ]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    padding = settings["padding"]
    return {
        **settings,
        "model": model,
        "added_tokens": [{**token, "id": new[token["id"]]} for token in settings["added_tokens"]],
        "post_processor": renumbered(settings["post_processor"], new.__getitem__),
        "padding": padding and {**padding, "pad_id": new[padding["pad_id"]]},
    }


def _renumber_config(path: Path, number: Callable[[int], int]) -> None:
    """Give token ids in `tokenizer_config.json` their new values."""
    values: dict[str, Any] = read_json(path)
    for name, value in values.items():
        if name == "added_tokens_decoder":
            values[name] = {str(number(int(index))): token for index, token in value.items()}
        elif name.endswith("token_id") and isinstance(value, int):
            values[name] = number(value)
        elif name.endswith("token_ids") and isinstance(value, list):
            values[name] = [number(index) for index in value]
    write_json(path, values)


def _check_loaded(tokenizer: Any, expected: dict[str, Any]) -> None:
    """Raise `VocabularyError` unless a tokenizer was loaded as it was written; some classes build parts by rules."""
    found = settings_of(tokenizer)
    names = [name for name in found if name not in _SET_BY_CALLS]
    # As JSON, since tuples and lists are the same there
    different = [name for name in names if json.dumps(found[name]) != json.dumps(expected[name])]
    if different:
        raise VocabularyError(
            f"{type(tokenizer).__name__} does not load the {' and '.join(different)} that its files have; make a "
            "PreTrainedTokenizerFast of its backend_tokenizer, and prune that"
        )
