"""One writer for a folder at a time."""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import OutputError
from .disk import disk_errors

logger = logging.getLogger(__name__)

LOCK_FILE = "_hf_whittle.lock"
"""Begins with `_`, since `Trainer` does not upload such files."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_held = threading.local()


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Keep other processes and threads from writing a folder inside the block; a missing folder is created.

    A lock ends with its process, even a killed one, and leaves nothing to remove by hand. Blocks may be nested. On a
    file system without locks, a warning is logged and the block runs.

    Raises:
        OutputError: at once, if another process or thread writes the folder, or it cannot be written.
    """
    with file_lock(Path(os.path.expanduser(folder), LOCK_FILE), folder):
        yield


@contextlib.contextmanager
def file_lock(file: Path, written: str | Path) -> Iterator[None]:
    """Lock a single file, as `folder_lock` does.

    Args:
        file (`Path`): the file to lock.
        written (`str` or `Path`): file or folder that it protects, named in errors.
    """
    path = Path(os.path.realpath(file.parent), file.name)
    key = os.getpid(), path
    held = _held.__dict__.setdefault("files", set())
    if key in held:
        yield
        return
    lock = _acquire(path, written)
    held.add(key)
    try:
        yield
    finally:
        held.discard(key)
        if lock is not None:
            with contextlib.suppress(OSError):  # a failing disk, or Windows, which cannot remove an open file
                path.unlink(missing_ok=True)
            lock.release()


def _acquire(path: Path, written: str | Path) -> BaseFileLock | None:
    """Acquire the lock of a file; `None` on a file system without locks."""
    with disk_errors(written):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise OutputError(
                    errno.EBUSY,
                    f"{written} is being written by another process or thread; wait until that has ended, or choose "
                    "another folder",
                ) from error
            except (NotImplementedError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                    raise
                logger.warning(f"{written} lies on a file system without locks: make sure that nothing else writes it")
                return None
            if path.exists():
                return lock
            lock.release()  # the last holder removed the file after it was opened
