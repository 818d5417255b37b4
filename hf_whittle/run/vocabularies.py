"""Vocabularies of a run: the order of its tokens, tokens for each byte of text, and what students read."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..architectures.dimensions import VOCABULARY
from ..distillation.vocabularies import check_fits
from ..errors import RecipeError, VocabularyError
from ..evaluation import as_input_ids
from ..evaluation.texts import count_bytes, encode_texts
from ..files.text import read_json, write_json
from ..fingerprints import tokenizer_fingerprint
from ..processes import in_first
from ..space.search_space import SearchSpace
from ..subnet import Kept
from ..vocabulary import VocabularyMap, minimum_size, rank_tokens
from ..vocabulary.token_bytes import token_bytes
from .inputs import Inputs

ORDER_FILE = "token-order.json"
RANKED_TOKENS = 2**22
"""Most tokens of training text that the others are ranked by."""


def check_vocabularies(inputs: Inputs, supernet: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Find out whether the student and the search's candidates can learn from the teacher, if they are to.

    Raises:
        VocabularyError: if a student is to learn from it whose tokens are not a part of the teacher's, or candidates
            are whose tokens are not the teacher's.
    """
    recipe = inputs.recipe
    if recipe.origin == recipe.teacher:
        return
    needs_same = recipe.search.fitness == "kl" or (recipe.search.has_probes and recipe.probe_config.beta > 0)
    if needs_same and (teacher.vocab_size != supernet.vocab_size or not inputs.vocabulary_of().is_identity):
        raise VocabularyError(
            f"the vocabulary of the teacher {recipe.teacher} has {teacher.vocab_size} entries, that of the "
            f"super-network {supernet.vocab_size}; candidates learn from one with the same tokens: use a teacher with "
            "the same vocabulary, or a search.fitness that has no teacher"
        )
    if recipe.training_arguments(recipe.output_dir).has_teacher:
        check_fits(inputs.vocabulary_of(), supernet.vocab_size, teacher.vocab_size)


def vocabulary_of_store(inputs: Inputs) -> VocabularyMap | None:
    """The map that a store of the teacher's targets is made with; `None` if these are for the student as they are.

    A teacher with more entries for the same tokens has targets of the student's entries alone.
    """
    vocabulary, size = inputs.vocabulary_of(), inputs.origin_config.vocab_size
    check_fits(vocabulary, size, inputs.teacher_config.vocab_size)
    if not vocabulary.is_identity:
        return vocabulary
    return VocabularyMap.of_kept(size) if size < inputs.teacher_config.vocab_size else None


def check_vocab_sizes(inputs: Inputs) -> None:
    """Find out, from tokenizers alone, whether the student's vocabulary may be another than the teacher's.

    Raises:
        RecipeError: if a size leaves out tokens that always stay, or is none of the tokenizer's; or if text of token
            ids would have to be read in another vocabulary.
        VocabularyError: if the tokenizer is of a kind that cannot be pruned.
    """
    if not inputs.counts_bytes:
        return
    token_bytes(inputs.teacher_tokenizer)  # raises if bytes of text cannot be counted
    encoded = [source.token_column for source in inputs.recipe.data.all_sources if source.token_column is not None]
    if encoded:
        raise RecipeError(
            f"data.token_column: {encoded[0]} holds ids of one vocabulary, and student and teacher read the text in "
            "tokens of their own; give text_column"
        )
    sizes = inputs.recipe.space.vocab_sizes
    if sizes is None:
        return
    least, most, whole = minimum_size(inputs.tokenizer), len(inputs.tokenizer), inputs.origin_config.vocab_size
    beyond = max(inputs.tokenizer.get_vocab().values()) + 1
    if beyond > whole:
        raise RecipeError(
            f"space.vocab_sizes: the tokenizer of {inputs.recipe.origin} has {beyond} tokens, the model embeddings for "
            f"{whole}; only a tokenizer whose tokens all have embeddings can lose some, so leave vocab_sizes out"
        )
    wrong = [size for size in sizes if not least <= size <= most and size != whole]
    if wrong:
        raise RecipeError(
            f"space.vocab_sizes: the tokenizer of {inputs.recipe.origin} can have {least} tokens, those that always "
            f"stay, to {most}, and the model {whole} entries for all of them; got {wrong[0]}"
        )


def token_order(inputs: Inputs, folder: Path | None = None) -> list[int] | None:
    """The order in which a recipe's sizes of the vocabulary keep tokens, by their use on training text.

    All processes call this; the first one ranks, or reads what it left in `folder` for the same tokenizer and text.

    Returns:
        `list[int]`: ids of all tokens of the tokenizer; `None` if the recipe gives no sizes.
    """
    if inputs.recipe.space.vocab_sizes is None:
        return None
    return in_first(lambda: _ranked(inputs, None if folder is None else folder / ORDER_FILE))


def _ranked(inputs: Inputs, path: Path | None) -> list[int]:
    size = inputs.recipe.data.block_size
    ids = as_input_ids(inputs.training_blocks(max(1, RANKED_TOKENS // size)), inputs.origin_config.vocab_size)
    counts = Counter({token: number for token, number in enumerate(np.bincount(ids.flatten()).tolist()) if number})
    known = json.dumps([tokenizer_fingerprint(inputs.tokenizer), sorted(counts.items())]).encode()
    fingerprint = hashlib.sha256(known).hexdigest()[:16]
    if path is not None and path.is_file() and (before := read_json(path))["fingerprint"] == fingerprint:
        return list(before["order"])
    order = rank_tokens(inputs.tokenizer, counts)
    if path is not None:
        write_json(path, {"fingerprint": fingerprint, "tokens": ids.numel(), "order": order})
    return order


def tokens_per_byte(inputs: Inputs, space: SearchSpace) -> dict[int, float]:
    """Tokens for each byte of a search's documents, by the size of the vocabulary."""
    documents = inputs.search_documents
    bytes_of_text = sum(map(count_bytes, documents))
    found = {}
    for size in space.sizes(VOCABULARY):
        tokenizer = inputs.tokenizer_of(space.tokens.choose(None, size))
        ids = encode_texts(tokenizer, documents, add_special_tokens=False)
        found[size] = sum(map(len, ids)) / bytes_of_text
    return found


def in_tokens_of(inputs: Inputs, kept: Kept | None, blocks: Dataset, length: int) -> Dataset:
    """Blocks of the super-network's tokens as blocks of `length` tokens of a student; what is too short is repeated."""
    tokenizer, whole = inputs.tokenizer_of(kept), inputs.tokenizer
    texts = (whole.decode(row) for row in blocks["input_ids"])
    rows = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    return Dataset.from_dict({"input_ids": [np.resize(row, length).tolist() for row in rows]})


def tokens_per_byte_of(blocks: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """Tokens for each byte of the text of blocks, in which special tokens have no bytes."""
    ids = as_input_ids(blocks, len(sizes := token_bytes(tokenizer)))
    return ids.numel() / int(sizes[ids].sum())


def bits_per_byte(nats: float, blocks: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> float:
    """Bits for each byte of the predicted text of blocks, `(blocks, block_size)`, from nats for each of its tokens."""
    labels = blocks[:, 1:]
    return nats * labels.numel() / int(token_bytes(tokenizer)[labels].sum()) / math.log(2)
