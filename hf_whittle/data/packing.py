"""Pack documents into blocks of tokens: cached, by several processes, or as a stream."""

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher

from ..compat.others import dataset_fingerprint, with_features
from ..errors import DataError
from ..files.disk import disk_errors
from .encoding import Encoder, TextEncoder, TokenEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOKENS = Features({"input_ids": List(Value("int32"))})
"""Columns of packed blocks."""
_DOCUMENTS_PER_PACKING_BATCH = 10_000
_DOCUMENTS_PER_STREAMED_BATCH = 1000
_ROWS_CHECKED = 1000
_RULES = 2  # version of tokenizing and packing in cache keys; raise it with every change of them


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
    of a stream. `BlockStream` packs streams that mix, resume and never end.

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
    return pack_rows(documents, TextEncoder(tokenizer, text_column), block_size, num_proc)


@disk_errors(HF_DATASETS_CACHE)
def pack_rows(rows: Any, encoder: Encoder, block_size: int, num_proc: int | None = None) -> Any:
    """Pack rows of text or of token ids, as `pack_documents` does; blocks that are packed already are only checked.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`): the rows.
        encoder (`TextEncoder` or `TokenEncoder`): makes token ids of them; one with a `block_size` takes each row for
            a block.
        block_size (`int`): tokens in a block.
        num_proc (`int`, *optional*): number of processes that encode.

    Raises:
        DataError, VocabularyError: as `pack_documents` and the encoder.
    """
    rows = checked_rows(rows, encoder)
    if block_size < 2:
        raise DataError(f"a block needs at least 2 tokens to predict one, got block_size={block_size}")
    if isinstance(rows, IterableDataset):
        return _pack_stream(rows, encoder, block_size)
    if len(rows) == 0:
        raise DataError("the dataset has no documents; check the paths, the split and the text column")
    if isinstance(encoder, TokenEncoder) and encoder.block_size is not None:
        return _as_blocks(rows, encoder)
    key = [dataset_fingerprint(rows), *encoder.identity, _RULES]
    tokens = rows.map(
        _encode,
        batched=True,
        batch_size=100,
        num_proc=num_proc if num_proc and num_proc > 1 and len(rows) > num_proc else None,
        remove_columns=rows.column_names,
        fn_kwargs={"encoder": encoder},
        features=TOKENS,
        new_fingerprint=Hasher.hash(key),
        desc="tokenize",
    )
    blocks = tokens.map(
        _pack,
        batched=True,
        batch_size=_DOCUMENTS_PER_PACKING_BATCH,
        remove_columns=tokens.column_names,
        fn_kwargs={"block_size": block_size},
        features=TOKENS,
        new_fingerprint=Hasher.hash([*key, block_size]),
        desc="pack",
    )
    if len(blocks) == 0:
        total = sum(len(ids) for ids in tokens["input_ids"])
        raise DataError(
            f"{len(rows)} documents give {total} tokens, less than one block of {block_size}; "
            "give more text or a smaller block_size"
        )
    return blocks.with_format("numpy")


def checked_rows(rows: Any, encoder: Encoder) -> Any:
    """Return rows, of which a stream knows its columns, with the encoder's column as it needs it.

    Raises:
        DataError: if there is no such column, or it holds something else.
    """
    if isinstance(rows, IterableDataset) and rows.column_names is None:
        rows = with_features(rows)
    if encoder.column not in (rows.column_names or ()):
        raise DataError(f"the dataset has no column {encoder.column!r}, only {rows.column_names}; name one of these")
    encoder.check(rows.features)
    return rows


def _as_blocks(rows: Dataset, encoder: TokenEncoder) -> Dataset:
    """Check all rows, and return them as blocks without a copy."""
    blocks = rows.select_columns([encoder.column]).with_format("numpy")
    for batch in blocks.iter(batch_size=_ROWS_CHECKED):
        if len(encoder(batch[encoder.column])) < len(batch[encoder.column]):
            raise DataError(f"a row of the column {encoder.column!r} is empty; leave it out, or set packed: false")
    return blocks if encoder.column == "input_ids" else blocks.rename_column(encoder.column, "input_ids")


def _pack_stream(rows: IterableDataset, encoder: Encoder, block_size: int) -> IterableDataset:
    tokens = rows.map(
        _encode,
        batched=True,
        batch_size=100,
        remove_columns=rows.column_names,
        fn_kwargs={"encoder": encoder},
        features=TOKENS,
    )
    blocks = tokens.map(
        _pack,
        batched=True,
        batch_size=_DOCUMENTS_PER_STREAMED_BATCH,
        fn_kwargs={"block_size": block_size},
        features=TOKENS,
    )
    if next(iter(blocks), None) is None:
        raise DataError(
            f"the streamed documents give less than one block of {block_size} tokens; give more text or a smaller "
            "block_size"
        )
    return blocks.with_format("numpy")


def _encode(batch: dict[str, list], encoder: Encoder) -> dict[str, list]:
    return {"input_ids": encoder(batch[encoder.column])}


def _pack(batch: dict[str, list[list[int]]], block_size: int) -> dict[str, Any]:
    if not batch["input_ids"]:
        return {"input_ids": []}
    tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]])
    blocks = len(tokens) // block_size
    return {"input_ids": tokens[: blocks * block_size].reshape(blocks, block_size)}
