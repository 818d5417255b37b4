"""Bytes of text that each token of a tokenizer stands for."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import VocabularyError
from .structure import BYTES, settings_of


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Number of bytes in UTF-8 that each token stands for, `(V,)`, `int64`; 0 for special tokens.

    Raises:
        VocabularyError: if the tokenizer is no fast tokenizer of BPE or Unigram.
    """
    settings = settings_of(tokenizer)
    model, decoder = settings["model"], settings["decoder"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise VocabularyError("the tokens of this tokenizer have marks of words, which stand for no text of their own")
    added = {token["id"]: token for token in settings["added_tokens"]}
    is_byte_level, in_bytes = _has(decoder, "ByteLevel"), set(BYTES) if model["byte_fallback"] else set()
    vocabulary = tokenizer.get_vocab()
    sizes = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    for token, index in vocabulary.items():
        if index in added:
            size = 0 if added[index]["special"] else len(token.encode())
        elif token in in_bytes:
            size = 1
        else:
            size = len(token) if is_byte_level else len(token.replace("▁", " ").encode())
        sizes[index] = size
    return sizes


def _has(decoder: Any, kind: str) -> bool:
    """Whether a decoder, given as JSON, is of a kind or has one among its parts."""
    return bool(decoder) and (decoder["type"] == kind or any(_has(each, kind) for each in decoder.get("decoders", ())))
