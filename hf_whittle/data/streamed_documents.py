"""Open a dataset or files as a stream of documents, of which only those being read are in memory; nothing is cached."""

from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset, concatenate_datasets, load_dataset, load_dataset_builder

from ..errors import DataError
from ..files.paths import expanded
from .documents import STANDARD_LIBRARY, data_files, dataset_folder, is_saved, load_saved, named_errors, without_magic
from .text_files import Paths, cache_of, files_by_kind, files_sample, find_files, read_text, table_options

_SHARDS = 64  # of a dataset on disk: a stream is resumed from the start of a shard


def stream_documents(
    dataset: str | None = None,
    files: Paths | None = None,
    config: str | None = None,
    split: str = "train",
    *,
    text_column: str = "text",
    token_column: str | None = None,
    revision: str | None = None,
) -> IterableDataset:
    """Open a dataset or files as a stream of documents, in the order in which `load_documents` loads them.

    Args:
        dataset (`str`, *optional*): name on the Hub, a folder, or `"python-standard-library"`.
        files (`list[str]`, *optional*): files or patterns of them, instead of a dataset.
        config (`str`, *optional*): configuration of the dataset.
        split (`str`, *optional*, defaults to `"train"`): its split.
        text_column (`str`, *optional*, defaults to `"text"`): text column of tables among `files`.
        token_column (`str`, *optional*): column of token ids of tables among `files`, instead of text.
        revision (`str`, *optional*): commit, tag or branch of a dataset on the Hub.

    Raises:
        DataError: if a pattern matches no file, there is no such split, or a part of a split is wanted.
    """
    if files is not None:
        return _stream_files(find_files(files), text_column, token_column)
    if "[" in split or "+" in split:
        raise DataError(f"a stream has whole splits, got {split!r}; name one split, or read it without streaming")
    if dataset == STANDARD_LIBRARY:
        from .standard_library import standard_library

        return standard_library().to_iterable_dataset(_SHARDS)
    folder = dataset_folder(dataset)
    with named_errors(dataset, split):
        if is_saved(folder):
            saved = load_saved(folder, split)
            return saved.to_iterable_dataset(max(1, min(_SHARDS, len(saved))))
        if not folder.is_dir():
            return load_dataset(expanded(str(dataset)), config, split=split, revision=revision, streaming=True)
        named = without_magic(folder, cache_of(files_sample(data_files(folder))))
        return load_dataset(named, config, split=split, streaming=True)


def stream_fingerprint(
    dataset: str | None = None, files: Paths | None = None, config: str | None = None, revision: str | None = None
) -> str:
    """Identify text without reading all of it: by its commit on the Hub, or sizes, first and last bytes of files."""
    if files is not None:
        return files_sample(files)
    folder = dataset_folder(dataset)
    if folder.is_dir():
        return files_sample(data_files(folder))
    with named_errors(dataset, "train"):
        return str(load_dataset_builder(expanded(str(dataset)), config, revision=revision).hash)


def _stream_files(found: list[str], text_column: str, token_column: str | None) -> IterableDataset:
    column, parts = token_column or text_column, []
    for kind, paths in sorted(files_by_kind(found, token_column).items(), key=lambda item: str(item[0] or "")):
        if kind is None:
            options: dict[str, Any] = {"gen_kwargs": {"files": paths, "column": column}}
            parts.append(IterableDataset.from_generator(_read_files, **options))
        else:
            parts.append(_stream_tables(kind, paths))
    return parts[0] if len(parts) == 1 else concatenate_datasets([part.select_columns([column]) for part in parts])


def _stream_tables(kind: str, paths: list[str]) -> IterableDataset:
    try:
        return load_dataset(kind, split="train", streaming=True, **table_options(kind, paths))
    except Exception as error:  # every builder raises errors of its own
        raise DataError(f"cannot read {paths[0]} as {kind}: {error}; correct it, or leave it out") from error


def _read_files(files: list[str], column: str) -> Iterator[dict[str, str]]:
    for path in files:
        yield {column: read_text(path)}
