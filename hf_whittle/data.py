"""Text to packed blocks of tokens, with `datasets`: cached, multi-process, held out by document."""

import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError

from .disk import disk_errors
from .errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STANDARD_LIBRARY = "python-standard-library"
_DOCUMENTS_PER_PACKING_BATCH = 10_000
_DOCUMENTS_PER_STREAMED_BATCH = 1000


@disk_errors(HF_DATASETS_CACHE)
def load_documents(
    dataset: str | None = None, files: list[str] | None = None, config: str | None = None, split: str = "train"
) -> Dataset:
    """Documents of a dataset or of files, one a row.

    Args:
        dataset (`str`, *optional*): name on the Hub, a folder of data files or one written by `save_to_disk`, or
            `"python-standard-library"`.
        files (`list[str]`, *optional*): text files or patterns of them, instead of a dataset; a file is a document.
        config (`str`, *optional*): configuration of the dataset.
        split (`str`, *optional*, defaults to `"train"`): its split.

    Raises:
        DataError: if a pattern matches no file, or the dataset has no such split.
    """
    if files is not None:
        paths = sorted(
            {path for pattern in files for path in glob.glob(pattern, recursive=True) if Path(path).is_file()}
        )
        if not paths:
            raise DataError(f"no file matches {files}; give text files, or patterns such as 'texts/**/*.txt'")
        return documents_from_files({path: path for path in paths}).remove_columns("name")
    if dataset is None:
        raise DataError("no text was named: give a dataset or files")
    if dataset == STANDARD_LIBRARY:
        from .demo.corpus import standard_library

        return standard_library()
    try:
        if any((Path(dataset) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(dataset)
            return saved if isinstance(saved, Dataset) else saved[split]
        return load_dataset(dataset, config, split=split)
    except (OSError, ValueError, KeyError, DatasetGenerationError) as error:
        raise DataError(f"cannot load the split {split!r} of the dataset {dataset!r}: {error}") from error


def documents_from_files(files: Mapping[str, str], errors: str = "strict") -> Dataset:
    """Files as documents, cached until one of them changes.

    Args:
        files (`Mapping[str, str]`): path of each document, by its name.
        errors (`str`, *optional*, defaults to `"strict"`): what to do with bytes that are not UTF-8, as for `open`.

    Returns:
        `datasets.Dataset`: columns `name` and `text`, in the order of `files`.

    Raises:
        DataError: if a file cannot be read, or is not UTF-8 text.
    """
    stamped = [(name, path, Path(path).stat().st_mtime_ns) for name, path in files.items()]
    try:
        return Dataset.from_generator(_read_files, gen_kwargs={"files": stamped, "errors": errors})
    except DatasetGenerationError as error:
        raise DataError(str(error.__cause__)) from error


def _read_files(files: list[tuple[str, str, int]], errors: str) -> Iterator[dict[str, str]]:
    for name, path, _ in files:
        try:
            yield {"name": name, "text": Path(path).read_text(encoding="utf-8", errors=errors)}
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}; convert it, or leave it out") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def split_documents(documents: Dataset, fractions: Mapping[str, float], key: str | None = None) -> dict[str, Dataset]:
    """Split a dataset by document, so that the split depends on each document alone.

    A document falls into a split by the SHA-256 of its key: neither its position, nor the other documents, nor the
    Python version change where it goes.

    Args:
        documents (`datasets.Dataset`): one row a document.
        fractions (`Mapping[str, float]`): share of the documents each held-out split gets, by name, e.g.
            `{"search": 0.05, "test": 0.05}`. What is left is the split `"train"`.
        key (`str`, *optional*): column that names a document; the text itself where it is `None`.

    Returns:
        `dict[str, datasets.Dataset]`: `"train"` and the named splits.

    Raises:
        DataError: if the column is missing, the fractions leave nothing to train on, or a split comes out empty.
    """
    if "train" in fractions or any(share <= 0 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise DataError(
            "held-out fractions must be positive, add up to less than 1 and not be called 'train', "
            f"got {dict(fractions)}"
        )
    column = key or "text"
    if column not in documents.column_names:
        raise DataError(f"the dataset has no column {column!r}, only {documents.column_names}; name one of these")
    rows: dict[str, list[int]] = {name: [] for name in (*fractions, "train")}
    for row, value in enumerate(documents[column]):
        digest = hashlib.sha256(str(value).encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        rows[_split_at(position, fractions)].append(row)
    for name, indices in rows.items():
        if not indices:
            raise DataError(
                f"the split {name!r} of {len(documents)} documents is empty; give more documents, or raise its fraction"
            )
    return {name: documents.select(indices) for name, indices in rows.items()}


def _split_at(position: float, fractions: Mapping[str, float]) -> str:
    """The split whose interval of [0, 1) holds `position`; the rest is `"train"`."""
    for name, share in fractions.items():
        if position < share:
            return name
        position -= share
    return "train"


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

    The blocks do not depend on `num_proc`: only tokenization, which treats each document alone, is spread over
    processes. Both steps are cached by `datasets`. At most `block_size - 1` tokens are dropped for every 10,000
    documents, every 1,000 of a stream.

    Args:
        documents (`datasets.Dataset` or `datasets.IterableDataset`): one row a document, its text in `text_column`; a
            streamed one is packed while it is read.
        tokenizer: a tokenizer with an `eos_token_id`.
        block_size (`int`): tokens in a block.
        text_column (`str`, *optional*, defaults to `"text"`): the column of the text.
        num_proc (`int`, *optional*): processes that tokenize.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: one column, `input_ids`, each row
            `block_size` token ids (`int32`).

    Raises:
        DataError: if there is no text, or less than one block of it.
    """
    if isinstance(documents, IterableDataset) and documents.column_names is None:
        documents = documents._resolve_features()
    if text_column not in documents.column_names:
        raise DataError(f"the dataset has no column {text_column!r}, only {documents.column_names}; name one of these")
    if block_size < 2:
        raise DataError(f"a block needs at least 2 tokens to predict one, got block_size={block_size}")
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token to put between documents; set tokenizer.eos_token")
    tokenizing = {"tokenizer": tokenizer, "text_column": text_column, "eos_token_id": tokenizer.eos_token_id}
    if isinstance(documents, IterableDataset):
        tokens = documents.map(
            _tokenize, batched=True, batch_size=100, remove_columns=documents.column_names, fn_kwargs=tokenizing
        )
        return tokens.map(
            _pack, batched=True, batch_size=_DOCUMENTS_PER_STREAMED_BATCH, fn_kwargs={"block_size": block_size}
        ).with_format("numpy")
    if len(documents) == 0:
        raise DataError("the dataset has no documents; check the paths, the split and the text column")
    tokens = documents.map(
        _tokenize,
        batched=True,
        batch_size=100,
        num_proc=num_proc if num_proc and num_proc > 1 and len(documents) > num_proc else None,
        remove_columns=documents.column_names,
        fn_kwargs=tokenizing,
        desc="tokenize",
    )
    blocks = tokens.map(
        _pack,
        batched=True,
        batch_size=_DOCUMENTS_PER_PACKING_BATCH,
        remove_columns=tokens.column_names,
        fn_kwargs={"block_size": block_size},
        desc="pack",
    )
    if len(blocks) == 0:
        total = sum(len(ids) for ids in tokens["input_ids"])
        raise DataError(
            f"{len(documents)} documents give {total} tokens, less than one block of {block_size}; "
            "give more text or a smaller block_size"
        )
    return blocks.with_format("numpy")


def _tokenize(batch: dict[str, list[str]], tokenizer: Any, text_column: str, eos_token_id: int) -> dict[str, list]:
    texts = [text for text in batch[text_column] if text]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return {"input_ids": [np.asarray([*ids, eos_token_id], dtype=np.int32) for ids in encoded]}


def _pack(batch: dict[str, list[list[int]]], block_size: int) -> dict[str, np.ndarray]:
    stream = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]])
    blocks = len(stream) // block_size
    return {"input_ids": stream[: blocks * block_size].reshape(blocks, block_size)}


def collate_blocks(blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack packed blocks into a batch whose labels are its inputs, end-of-text tokens included.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids` and `labels`, `int64`, `(batch, block_size)`.
    """
    input_ids = torch.stack([torch.as_tensor(block["input_ids"], dtype=torch.long) for block in blocks])
    return {"input_ids": input_ids, "labels": input_ids.clone()}


class DocumentCollator:
    """Stacks packed blocks so that no document sees another: positions start anew after each end-of-text token.

    `transformers` reads positions that start anew as documents apart and masks attention between them. The first token
    of a document is not to be predicted from another one: its label does not count.

    Args:
        eos_token_id (`int`): the token after each document.
    """

    def __init__(self, eos_token_id: int):
        self.eos_token_id = eos_token_id

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels` and `position_ids`, `int64`, `(batch, block_size)`."""
        batch = collate_blocks(blocks)
        ends = batch["input_ids"] == self.eos_token_id
        starts = torch.zeros_like(ends)
        starts[:, 0], starts[:, 1:] = True, ends[:, :-1]
        places = torch.arange(ends.shape[1]).expand_as(batch["input_ids"])
        batch["labels"] = batch["labels"].masked_fill(starts, -100)
        batch["position_ids"] = places - torch.where(starts, places, 0).cummax(dim=1).values
        return batch
