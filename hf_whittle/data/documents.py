"""Documents of a dataset or of files, told by their contents and held out by document."""

import glob
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError

from ..compat import dataset_fingerprint
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
        from .standard_library import standard_library

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
    return dataset_fingerprint(documents())


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
