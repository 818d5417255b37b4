"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError
from .disk import disk_errors
from .locks import file_lock
from .paths import expanded

_PARTIAL = "_partial-"
"""Prefix of files and folders that are being written or removed; a killed process leaves them behind.

`Trainer` does not upload names that begin with `_`.
"""
_BEFORE, _LOCK = ".before", ".lock"
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Errors of file systems without `fsync`, or without `fsync` of folders."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it if the block succeeds and removed if it does not.

    Raises:
        OutputError: if the folder cannot be written or the disk is full; the file at `path` stays as it was.
    """
    path = Path(expanded(path))
    temporary = None
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_PARTIAL}{path.stem}.", suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            _synchronize(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to it if the block succeeds and removed if it does not.

    Leftovers of a killed process are removed first. Only one process at a time may write the folder.

    Args:
        path (`str` or `Path`): the folder; unless `replace`, there must be none, or an empty one.
        replace (`bool`, *optional*, defaults to `False`): whether to replace a folder at `path`.

    Raises:
        OutputError: if the folder cannot be written, is not empty, another process writes it, or the disk is full.
    """
    path = Path(expanded(path))
    temporary = _partial(path)
    with disk_errors(path), file_lock(_lock_of(path), path):
        try:
            _put_back(path)
            _remove(temporary)
            temporary.mkdir()
            yield temporary
            put_in_place(temporary, path, replace=replace)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, path: Path, *, replace: bool = False) -> None:
    """Rename a finished folder to `path` after syncing all of its files to disk.

    Args:
        temporary (`Path`): the folder, on the same file system.
        path (`Path`): unless `replace`, there must be none, or an empty one.
        replace (`bool`, *optional*, defaults to `False`): whether to replace a folder at `path`. If the process is
            killed in between, `remove_leftovers` and the next `atomic_folder` restore the old one.
    """
    for written in [*temporary.rglob("*"), temporary]:
        _synchronize(written)
    before = _before(path)
    if replace and path.exists():
        _remove(before)
        path.replace(before)
    elif path.exists():
        shutil.copymode(path, temporary)
    temporary.replace(path)
    _synchronize(path.parent)
    _remove(before)


def remove_folder(path: str | Path) -> None:
    """Remove a folder if it exists; it is renamed first, so that it disappears all at once."""
    path = Path(path)
    doomed = _partial(path)
    with disk_errors(path):
        _remove(doomed)
        if path.exists():
            path.replace(doomed)
            _remove(doomed)


def remove_leftovers(folder: str | Path) -> None:
    """Remove unfinished files of killed processes from a folder, and restore the folders they were replacing.

    Call it while holding the lock of the folder. Folders that another process is writing are left alone.
    """
    folder = Path(folder)
    with disk_errors(folder):
        for leftover in sorted(folder.glob(f"{_PARTIAL}*")):
            if leftover.is_file() and leftover.suffix != _LOCK:
                _remove(leftover)
                continue
            path = folder / leftover.name.removeprefix(_PARTIAL).removesuffix(_LOCK).removesuffix(_BEFORE)
            try:
                with file_lock(_lock_of(path), path):
                    _put_back(path)
                    if leftover.suffix != _LOCK:
                        _remove(leftover)
            except OutputError as error:
                if error.errno != errno.EBUSY:
                    raise


def _partial(path: Path) -> Path:
    return path.with_name(_PARTIAL + path.name)


def _before(path: Path) -> Path:
    """Return the path of the old folder while a new one takes its place."""
    return path.with_name(_PARTIAL + path.name + _BEFORE)


def _lock_of(path: Path) -> Path:
    """Return the file to lock while writing the folder at `path`."""
    return path.with_name(_PARTIAL + path.name + _LOCK)


def _put_back(path: Path) -> None:
    """Restore a folder whose replacement was not finished."""
    if not path.exists() and _before(path).exists():
        _before(path).replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _synchronize(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
