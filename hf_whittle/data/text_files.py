"""Read files as documents: a text file is one, a table has one in each row; either may be compressed."""

import bz2
import codecs
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, config, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..compat.others import set_dataset_fingerprint
from ..errors import DataError
from ..files.paths import expanded

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_TABLES = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Builder of `datasets` for each suffix; any other file is text."""
_DECOMPRESS: dict[str, Any] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encoding of each byte-order mark."""
_FILES_OR_PATTERNS = "give files, or patterns such as 'texts/**/*.txt'"
_SAMPLED = 2**20
_RULES = 2  # version of reading files in cache keys; raise it with every change


def find_files(patterns: Paths) -> list[str]:
    """Return files by name or pattern, each once, sorted by path.

    A path that exists is taken literally, whatever characters are in it.

    Raises:
        DataError: if a pattern matches no file.
    """
    found: dict[str, str] = {}
    for given in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
        matched = [path for path in glob.glob(_as_pattern(expanded(given)), recursive=True) if Path(path).is_file()]
        if not matched:
            is_folder = Path(expanded(given)).is_dir()
            inside = f"it is a folder: give a pattern of files in it, such as {str(given).rstrip('/')}/**/*.txt"
            hint = inside if is_folder else _FILES_OR_PATTERNS
            raise DataError(f"no file matches {os.fspath(given)!r}; {hint}")
        found |= {os.path.abspath(path): path for path in matched}
    if not found:
        raise DataError(f"no file was named; {_FILES_OR_PATTERNS}")
    return sorted(found.values())


def _as_pattern(path: str) -> str:
    """Return a pattern in which the part of the path that exists is escaped."""
    parts = Path(path).parts
    for number in range(len(parts), 0, -1):
        known = str(Path(*parts[:number]))
        if os.path.lexists(known):
            return os.path.join(glob.escape(known), *parts[number:])
    return path


def load_files(patterns: Paths, text_column: str = "text", token_column: str | None = None) -> Dataset:
    """Load documents of files: a text file is one, a table has one in each row.

    Args:
        patterns: files, or patterns of them. `.jsonl`, `.json`, `.csv` and `.parquet` are tables, any other file is
            text; either may be compressed with gzip, bzip2 or xz.
        text_column (`str`, *optional*, defaults to `"text"`): text column of tables, and of text files beside them.
        token_column (`str`, *optional*): column of token ids of tables, instead of text.

    Returns:
        `datasets.Dataset`: the columns that all files share; only the text, if a text file is among them.

    Raises:
        DataError: if a pattern matches no file, or a file is not what its suffix says.
    """
    found = find_files(patterns)
    column, tables = token_column or text_column, files_by_kind(found, token_column)
    return _identified_by(_documents_of(tables, column, token_column is None), files_digest(found), column)


def files_by_kind(found: list[str], token_column: str | None = None) -> dict[str | None, list[str]]:
    """Group files by the builder that reads them; those of `None` are text.

    Raises:
        DataError: if a text file is among them, and a column of token ids is wanted.
    """
    tables: dict[str | None, list[str]] = {}
    for path in found:
        tables.setdefault(kind_of(path), []).append(path)
    if token_column is not None and None in tables:
        raise DataError(
            f"{tables[None][0]} is a text file, which has no column {token_column!r}; give tables "
            f"({', '.join(_TABLES)}), or leave token_column out"
        )
    return tables


def _documents_of(tables: dict[str | None, list[str]], text_column: str, is_text: bool) -> Dataset:
    parts = []
    if None in tables:
        texts = documents_from_files({path: path for path in tables.pop(None)}).remove_columns("name")
        parts.append(texts.rename_column("text", text_column) if tables and text_column != "text" else texts)
    parts += [_load_table(str(kind), paths, text_column, is_text) for kind, paths in sorted(tables.items(), key=str)]
    if len(parts) == 1:
        return parts[0]
    kind = parts[0].features[text_column]
    parts = [part if part.features[text_column] == kind else part.cast_column(text_column, kind) for part in parts]
    common = [
        name for name, feature in parts[0].features.items() if all(part.features.get(name) == feature for part in parts)
    ]
    return concatenate_datasets([part.select_columns(common) for part in parts])


def _identified_by(documents: Dataset, *values: object) -> Dataset:
    """Let `datasets` cache results of documents by these values, not by paths and modification times."""
    set_dataset_fingerprint(documents, hashlib.sha256(json.dumps([*values, _RULES]).encode()).hexdigest()[:32])
    return documents


def files_digest(patterns: Paths) -> str:
    """Hash the contents of files, how they are read, and their order."""
    parts = [(file_digest(path), kind_of(path), _compression(path)) for path in find_files(patterns)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def files_sample(patterns: Paths) -> str:
    """Hash the size of each file and its first and last megabyte, in their order: a change between is not noticed."""
    parts = [(_sample(path), kind_of(path), _compression(path)) for path in find_files(patterns)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sample(path: str | Path) -> str:
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            read = stream.read(_SAMPLED)
            stream.seek(max(0, size - _SAMPLED))
            return hashlib.sha256(b"%d " % size + read + stream.read(_SAMPLED)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, which a process reads again only if it changes.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        now = os.stat(path)
        return _digest(os.path.abspath(path), now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=2**16)
def _digest(path: str, *state: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_of(digest: str) -> Path:
    """Return the cache folder for files with these contents.

    By default, `datasets` identifies local files by path and modification time.
    """
    return Path(config.HF_DATASETS_CACHE) / "hf_whittle" / digest


def kind_of(path: str) -> str | None:
    """Return the builder that reads a file; `None` if it is text."""
    inner = Path(path).with_suffix("") if _compression(path) else Path(path)
    return _TABLES.get(inner.suffix.lower())


def _compression(path: str) -> str | None:
    """Return the suffix of a compressed file; `None` for any other."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in _DECOMPRESS else None


def _load_table(kind: str, paths: list[str], text_column: str, is_text: bool) -> Dataset:
    cache = cache_of(hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest())
    names = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    try:
        table = load_dataset(kind, split="train", cache_dir=str(cache), **table_options(kind, paths))
    except Exception as error:  # every builder raises errors of its own
        cause = error.__cause__ or error
        is_empty = type(cause).__name__ in ("StopIteration", "SchemaInferenceError")  # the latter before datasets 5
        reason = "no rows" if is_empty else " ".join(str(cause).split()) or repr(cause)
        raise DataError(f"cannot read {names} as {kind}: {reason}; correct it, or leave it out") from error
    if text_column not in table.column_names:
        raise DataError(
            f"{names} has no column {text_column!r}, only {table.column_names}; name one of these as "
            f"{'text_column' if is_text else 'token_column'}"
        )
    if is_text:
        check_holds_text(table.features, text_column)
    return table


def table_options(kind: str, paths: list[str]) -> dict[str, Any]:
    """Return arguments of `load_dataset` for tables of one kind."""
    marked = {"encoding": "utf-8-sig"} if kind == "json" and any(map(_has_mark, paths)) else {}
    return {"data_files": [glob.escape(os.path.abspath(path)) for path in paths], **marked}


def _has_mark(path: str) -> bool:
    with Path(path).open("rb") as stream:
        return stream.read(3) == codecs.BOM_UTF8


def check_holds_text(features: Mapping[str, Any], column: str) -> None:
    """Raise `DataError` unless a column holds text or no values at all."""
    kind = getattr(features[column], "dtype", None)
    if kind not in ("string", "large_string", "string_view", "null"):
        raise DataError(f"the column {column!r} holds {kind or features[column]}, not text; name a column of text")


def documents_from_files(files: Mapping[str, str], errors: str = "strict") -> Dataset:
    """Load text files as documents, cached by their contents.

    Args:
        files (`Mapping[str, str]`): path of each document, by its name.
        errors (`str`, *optional*, defaults to `"strict"`): how to treat bytes that are not text, as for `open`.

    Returns:
        `datasets.Dataset`: columns `name` and `text`, in the order of `files`.

    Raises:
        DataError: if a file cannot be read, or is not text in UTF-8 or the encoding of its byte-order mark.
    """
    found = [(name, str(path), file_digest(path)) for name, path in files.items()]
    try:
        # Cached by these arguments alone, so they include everything that determines the text.
        documents = Dataset.from_generator(_read_files, gen_kwargs={"files": found, "errors": errors, "rules": _RULES})
    except DatasetGenerationError as error:
        raise DataError(str(error.__cause__)) from error
    return _identified_by(documents, [(name, digest) for name, _, digest in found], errors)


def _read_files(files: list[tuple[str, str, str]], errors: str, rules: int) -> Iterator[dict[str, str]]:
    for name, path, digest in files:
        yield {"name": name, "text": read_text(path, digest, errors)}


def read_text(path: str, digest: str | None = None, errors: str = "strict") -> str:
    """Read a text file, compressed or not.

    Args:
        path (`str`): the file.
        digest (`str`, *optional*): SHA-256 that it has.
        errors (`str`, *optional*, defaults to `"strict"`): how to treat bytes that are not text, as for `open`.

    Raises:
        DataError: if it cannot be read, is not text in UTF-8 or the encoding of its byte-order mark, or was changed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{path} was changed while it was read; start again when it is complete")
    try:
        data = _DECOMPRESS.get(Path(path).suffix.lower(), bytes)(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be decompressed: {error}; compress it again, or leave it out") from error
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding, errors).read()
    except UnicodeError as error:
        raise DataError(f"{path} is not {encoding} text: {error}; convert it, or leave it out") from error
    if errors == "strict" and "\0" in text:
        raise DataError(f"{path} is not text, since it contains null bytes; convert it, or leave it out")
    return text
