"""Pack documents into blocks of tokens: cached, by several processes, or as a stream."""

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features, IterableDataset, List, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher

from ..compat import dataset_fingerprint, with_features
from ..errors import DataError
from ..files.disk import disk_errors
from ..fingerprints import tokenizer_fingerprint
from .text_files import check_holds_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_DOCUMENTS_PER_PACKING_BATCH = 10_000
_DOCUMENTS_PER_STREAMED_BATCH = 1000
_TOKENS = Features({"input_ids": List(Value("int32"))})
_RULES = 2  # version of tokenizing and packing in cache keys; raise it with every change of them


@disk_errors(HF_DATASETS_CACHE)
def pack_documents(
    documents: Any,
    tokenizer: "PreTrainedTokenizerBase",
    block_size: int,
    *,
    text_column: str = "text",
    num_proc: int | None = None,
) -> Any:
    """Tokenize documents and pack them into blocks without padding, an end-of-text token after each document.

    The blocks do not depend on `num_proc`: processes share tokenization alone, which treats each document by itself.
    `datasets` caches both steps. At most `block_size - 1` tokens are dropped for every 10,000 documents, every 1,000
    of a stream.

    Args:
        documents (`datasets.Dataset` or `datasets.IterableDataset`): one document in each row; a streamed one is
            packed while it is read.
        tokenizer: a tokenizer with an `eos_token_id`.
        block_size (`int`): tokens in a block.
        text_column (`str`, *optional*, defaults to `"text"`): column of the text.
        num_proc (`int`, *optional*): number of processes that tokenize.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: one column, `input_ids`, each row
            `block_size` token ids (`int32`).

    Raises:
        DataError: if there is no text, or less than one block of it.
    """
    if isinstance(documents, IterableDataset) and documents.column_names is None:
        documents = with_features(documents)
    if text_column not in (documents.column_names or ()):
        raise DataError(f"the dataset has no column {text_column!r}, only {documents.column_names}; name one of these")
    check_holds_text(documents.features, text_column)
    if block_size < 2:
        raise DataError(f"a block needs at least 2 tokens to predict one, got block_size={block_size}")
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token to put between documents; set tokenizer.eos_token")
    tokenizing = {"tokenizer": tokenizer, "text_column": text_column, "eos_token_id": tokenizer.eos_token_id}
    if isinstance(documents, IterableDataset):
        return _pack_stream(documents, tokenizing, block_size)
    if len(documents) == 0:
        raise DataError("the dataset has no documents; check the paths, the split and the text column")
    source = dataset_fingerprint(documents)
    key = [source, tokenizer_fingerprint(tokenizer), tokenizer.eos_token_id, text_column, _RULES]
    tokens = documents.map(
        _tokenize,
        batched=True,
        batch_size=100,
        num_proc=num_proc if num_proc and num_proc > 1 and len(documents) > num_proc else None,
        remove_columns=documents.column_names,
        fn_kwargs=tokenizing,
        features=_TOKENS,
        new_fingerprint=Hasher.hash(key),
        desc="tokenize",
    )
    blocks = tokens.map(
        _pack,
        batched=True,
        batch_size=_DOCUMENTS_PER_PACKING_BATCH,
        remove_columns=tokens.column_names,
        fn_kwargs={"block_size": block_size},
        features=_TOKENS,
        new_fingerprint=Hasher.hash([*key, block_size]),
        desc="pack",
    )
    if len(blocks) == 0:
        total = sum(len(ids) for ids in tokens["input_ids"])
        raise DataError(
            f"{len(documents)} documents give {total} tokens, less than one block of {block_size}; "
            "give more text or a smaller block_size"
        )
    return blocks.with_format("numpy")


def _pack_stream(documents: IterableDataset, tokenizing: dict[str, Any], block_size: int) -> IterableDataset:
    tokens = documents.map(
        _tokenize,
        batched=True,
        batch_size=100,
        remove_columns=documents.column_names,
        fn_kwargs=tokenizing,
        features=_TOKENS,
    )
    blocks = tokens.map(
        _pack,
        batched=True,
        batch_size=_DOCUMENTS_PER_STREAMED_BATCH,
        fn_kwargs={"block_size": block_size},
        features=_TOKENS,
    )
    if next(iter(blocks), None) is None:
        raise DataError(
            f"the streamed documents give less than one block of {block_size} tokens; give more text or a smaller "
            "block_size"
        )
    return blocks.with_format("numpy")


def _tokenize(batch: dict[str, list[str]], tokenizer: Any, text_column: str, eos_token_id: int) -> dict[str, list]:
    texts = [text for text in batch[text_column] if text]
    if not texts:  # tokenizers refuse an empty list
        return {"input_ids": []}
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return {"input_ids": [np.asarray([*ids, eos_token_id], dtype=np.int32) for ids in encoded]}


def _pack(batch: dict[str, list[list[int]]], block_size: int) -> dict[str, Any]:
    if not batch["input_ids"]:
        return {"input_ids": []}
    tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]])
    blocks = len(tokens) // block_size
    return {"input_ids": tokens[: blocks * block_size].reshape(blocks, block_size)}
