"""Load documents of a dataset or of files, identify them by contents, and split them by document."""

import contextlib
import glob
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError

from ..compat.others import dataset_fingerprint
from ..errors import DataError
from ..files.disk import disk_errors
from ..files.paths import expanded
from .text_files import Paths, cache_of, file_digest, files_digest, load_files

STANDARD_LIBRARY = "python-standard-library"


@disk_errors(HF_DATASETS_CACHE)
def load_documents(
    dataset: str | None = None,
    files: Paths | None = None,
    config: str | None = None,
    split: str = "train",
    *,
    text_column: str = "text",
    token_column: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Load documents of a dataset or of files, one in each row. Local files are cached by their contents.

    Args:
        dataset (`str`, *optional*): name on the Hub, a folder of data files or one written by `save_to_disk`, or
            `"python-standard-library"`.
        files (`list[str]`, *optional*): files or patterns of them, instead of a dataset: a text file is one document,
            a table (`.jsonl`, `.json`, `.csv`, `.parquet`) has one in each row. Either may be compressed.
        config (`str`, *optional*): configuration of the dataset.
        split (`str`, *optional*, defaults to `"train"`): its split.
        text_column (`str`, *optional*, defaults to `"text"`): text column of tables among `files`.
        token_column (`str`, *optional*): column of token ids of tables among `files`, instead of text.
        revision (`str`, *optional*): commit, tag or branch of a dataset on the Hub.

    Raises:
        DataError: if no file matches a pattern, a file is not what its suffix says, or there is no such split.
    """
    if files is not None:
        return load_files(files, text_column, token_column)
    if dataset == STANDARD_LIBRARY:
        from .standard_library import standard_library

        return standard_library()
    folder = dataset_folder(dataset)
    with named_errors(dataset, split):
        if is_saved(folder):
            return load_saved(folder, split)
        if not folder.is_dir():
            return load_dataset(expanded(str(dataset)), config, split=split, revision=revision)
        cache = cache_of(_folder_digest(folder))
        return load_dataset(without_magic(folder, cache), config, split=split, cache_dir=str(cache))


def dataset_folder(dataset: str | None) -> Path:
    """Return the folder of a dataset; one that does not exist stands for a name on the Hub.

    Raises:
        DataError: if there is no name, or it is that of a file.
    """
    if dataset is None:
        raise DataError("no text was named: give a dataset or files")
    folder = Path(expanded(dataset))
    if folder.is_file():
        raise DataError(f"the dataset {str(dataset)!r} is a file; give it under files")
    return folder


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def load_saved(folder: Path, split: str) -> Dataset:
    """Load a dataset that `save_to_disk` wrote, mapped into memory, without the format it was saved with."""
    loaded = load_from_disk(str(folder))
    saved = loaded if isinstance(loaded, Dataset) else loaded[split]
    return saved if saved.format["type"] is None else saved.with_format(None)


@contextlib.contextmanager
def named_errors(dataset: str | None, split: str) -> Iterator[None]:
    """Name the dataset and the split in errors of `datasets` inside the block."""
    try:
        yield
    except (OSError, ValueError, KeyError, DatasetGenerationError) as error:
        raise DataError(f"cannot load the split {split!r} of the dataset {str(dataset)!r}: {error}") from error


def documents_fingerprint(
    documents: Callable[[], Dataset], dataset: str | None = None, files: Paths | None = None
) -> str:
    """Hash the contents of local text; for any other, return the fingerprint of `datasets`.

    Args:
        documents (`Callable`): loads the documents; called only if they are not local.
        dataset (`str`, *optional*): their name on the Hub, or a folder.
        files (`list[str]`, *optional*): files or patterns of them, instead of a dataset.
    """
    if files is not None:
        return files_digest(files)
    if dataset is not None and Path(expanded(dataset)).is_dir():
        return _folder_digest(Path(expanded(dataset)))
    return dataset_fingerprint(documents())


def data_files(folder: Path) -> list[Path]:
    """Return the files of a dataset, without hidden ones and cache files of `datasets`."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (path.name.startswith("cache-") and path.suffix == ".arrow")
    )


def _folder_digest(folder: Path) -> str:
    named = (f"{path.relative_to(folder).as_posix()} {file_digest(path)}" for path in data_files(folder))
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def without_magic(folder: Path, cache: Path) -> str:
    """Return the path of a folder; of links to its files if `datasets` would take its path for a pattern."""
    if not glob.has_magic(str(folder.resolve())):
        return str(folder)
    target = cache / "data"
    shutil.rmtree(target, ignore_errors=True)
    for path in data_files(folder):
        link = target / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return str(target)


def split_documents(documents: Dataset, fractions: Mapping[str, float], key: str | None = None) -> dict[str, Dataset]:
    """Split a dataset by the SHA-256 of each document's key.

    The split of a document depends neither on its position, nor on other documents, nor on the Python version.

    Args:
        documents (`datasets.Dataset`): one document in each row.
        fractions (`Mapping[str, float]`): share of the documents in each held-out split, by name, e.g.
            `{"search": 0.05, "test": 0.05}`. The rest is the split `"train"`.
        key (`str`, *optional*): column with the name of a document; `"text"` if `None`.

    Returns:
        `dict[str, datasets.Dataset]`: `"train"` and the named splits.

    Raises:
        DataError: if the column is missing, the fractions leave nothing to train on, or a split is empty.
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
        rows[split_of(value, fractions)].append(row)
    for name, indices in rows.items():
        if not indices:
            raise DataError(
                f"the split {name!r} of {len(documents)} documents is empty; give more documents, or raise its fraction"
            )
    return {name: documents.select(indices) for name, indices in rows.items()}


def split_of(key: object, fractions: Mapping[str, float]) -> str:
    """Return the split in whose interval of [0, 1) the hash of a document's key lies; the rest is `"train"`."""
    digest = hashlib.sha256(str(key).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in fractions.items():
        if position < share:
            return name
        position -= share
    return "train"
