"""Text to packed blocks of tokens, with `datasets`: cached, multi-process, held out by document."""

import glob
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from .batches import DocumentCollator, collate_blocks
from .errors import DataError
from .files.disk import disk_errors
from .files.paths import expanded
from .fingerprints import tokenizer_fingerprint
from .text_files import Paths, cache_of, check_holds_text, file_digest, files_digest, load_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = (
    "STANDARD_LIBRARY",
    "DocumentCollator",
    "collate_blocks",
    "documents_fingerprint",
    "load_documents",
    "pack_documents",
    "split_documents",
)
STANDARD_LIBRARY = "python-standard-library"
_DOCUMENTS_PER_PACKING_BATCH = 10_000
_DOCUMENTS_PER_STREAMED_BATCH = 1000
_TOKENS = Features({"input_ids": List(Value("int32"))})
_RULES = 2  # of tokenizing and packing; to be raised with every change of them


@disk_errors(HF_DATASETS_CACHE)
def load_documents(
    dataset: str | None = None,
    files: Paths | None = None,
    config: str | None = None,
    split: str = "train",
    *,
    text_column: str = "text",
) -> Dataset:
    """Documents of a dataset or of files, one a row. What is cached of local files is found by their contents.

    Args:
        dataset (`str`, *optional*): name on the Hub, a folder of data files or one written by `save_to_disk`, or
            `"python-standard-library"`.
        files (`list[str]`, *optional*): files or patterns of them, instead of a dataset: text files, each a document,
            and tables, each row one: `.jsonl`, `.json`, `.csv` and `.parquet`. Either may be packed.
        config (`str`, *optional*): configuration of the dataset.
        split (`str`, *optional*, defaults to `"train"`): its split.
        text_column (`str`, *optional*, defaults to `"text"`): column of the text in tables among `files`.

    Raises:
        DataError: if a pattern matches no file, a file is not what it is called, or the dataset has no such split.
    """
    if files is not None:
        return load_files(files, text_column)
    if dataset is None:
        raise DataError("no text was named: give a dataset or files")
    if dataset == STANDARD_LIBRARY:
        from .demo.corpus import standard_library

        return standard_library()
    folder = Path(expanded(dataset))
    if folder.is_file():
        raise DataError(f"the dataset {str(dataset)!r} is a file; give it under files")
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(str(folder))
            return saved if isinstance(saved, Dataset) else saved[split]
        if not folder.is_dir():
            return load_dataset(expanded(dataset), config, split=split)
        cache = cache_of(_folder_digest(folder))
        named = str(folder) if not glob.has_magic(str(folder.resolve())) else _linked(folder, cache / "data")
        return load_dataset(named, config, split=split, cache_dir=str(cache))
    except (OSError, ValueError, KeyError, DatasetGenerationError) as error:
        raise DataError(f"cannot load the split {split!r} of the dataset {str(dataset)!r}: {error}") from error


def documents_fingerprint(
    documents: Callable[[], Dataset], dataset: str | None = None, files: Paths | None = None
) -> str:
    """A hash of the contents of local text; of any other, a hash of what `datasets` tells it by.

    Args:
        documents (`Callable`): gives what `load_documents` does, where that must be loaded to tell.
        dataset (`str`, *optional*): what it is loaded from.
        files (`list[str]`, *optional*): or files or patterns of them.
    """
    if files is not None:
        return files_digest(files)
    if dataset is not None and Path(expanded(dataset)).is_dir():
        return _folder_digest(Path(expanded(dataset)))
    return documents()._fingerprint


def _data_files(folder: Path) -> list[Path]:
    """Files of a dataset, with neither hidden ones nor what `datasets` cached beside them."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (path.name.startswith("cache-") and path.suffix == ".arrow")
    )


def _folder_digest(folder: Path) -> str:
    named = (f"{path.relative_to(folder).as_posix()} {file_digest(path)}" for path in _data_files(folder))
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def _linked(folder: Path, target: Path) -> str:
    """Links to the files of a folder whose path `datasets` would take for a pattern."""
    shutil.rmtree(target, ignore_errors=True)
    for path in _data_files(folder):
        link = target / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return str(target)


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
    key = [documents._fingerprint, tokenizer_fingerprint(tokenizer), tokenizer.eos_token_id, text_column, _RULES]
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
    if not texts:  # which a tokenizer refuses
        return {"input_ids": []}
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return {"input_ids": [np.asarray([*ids, eos_token_id], dtype=np.int32) for ids in encoded]}


def _pack(batch: dict[str, list[list[int]]], block_size: int) -> dict[str, Any]:
    if not batch["input_ids"]:
        return {"input_ids": []}
    stream = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]])
    blocks = len(stream) // block_size
    return {"input_ids": stream[: blocks * block_size].reshape(blocks, block_size)}
