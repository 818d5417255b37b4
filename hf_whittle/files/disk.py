"""Turn disk errors of any library into one error that says what to do."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError, WhittleError

_SPACE = "free some space"
_PERMISSION = "make the folder writable"
_IN_THE_WAY = "something is in the way there: choose another path, or remove it"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.EIO: "check the disk",
    errno.ESTALE: "check the disk",
    errno.EBUSY: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Advice for each disk error."""
_COUNT_AS_CAUSE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
"""Disk errors that explain an exception they caused; a program may expect and handle the others."""
_NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")  # in texts of Rust; of pyarrow and Python
_WITHOUT_REASON = re.compile(
    r"inline_container\.cc|PytorchStreamWriter|basic_ios::clear|iostream error"  # torch
    r"|^Parent directory .* does not exist|^File .* cannot be opened"  # torch too
    r"|^\d+ requested and \d+ written"  # numpy
)


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into an `OutputError` that says what to do.

    Args:
        path (`str` or `Path`): file or folder that is written. If an error names a file elsewhere, which may have been
            read, a full or failing disk is reported for that file, and any other error is raised unchanged.
    """
    try:
        yield
    except WhittleError:
        raise
    except Exception as error:
        code, elsewhere = _disk_errno(error, path), _elsewhere(error, path)
        is_read = elsewhere is not None or str(error).startswith("Caught ")  # in a process that loads data
        if code is None or (is_read and code not in _COUNT_AS_CAUSE):
            raise
        raise _could_not_write(elsewhere or path, code) from error


def _elsewhere(error: Exception, path: str | Path) -> str | None:
    """Return the file that an error names, unless it lies beside or below a path."""
    named = getattr(error, "filename", None)
    if not isinstance(named, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(named)
    return None if Path(name).absolute().is_relative_to(Path(path).absolute().parent) else name


def _disk_errno(error: BaseException, path: str | Path) -> int | None:
    """Return the `errno` of the disk error that an exception or its cause reports, or `None`."""
    code = _code(error)
    if code in _ADVICE:
        return code
    cause = error.__cause__
    while cause is not None:
        code = _code(cause)
        if code in _COUNT_AS_CAUSE:
            return code
        cause = cause.__cause__
    if _WITHOUT_REASON.search(str(error)):
        context = error.__context__
        code = None if context is None else _code(context)
        return code if code in _ADVICE else _errno_of_writing(Path(path))
    return None


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if "Not enough disk space" in str(error):  # datasets
        return errno.ENOSPC
    number = _NUMBER.search(str(error))
    return None if number is None else int(number[1] or number[2])


def _errno_of_writing(path: Path) -> int:
    """Write a megabyte and return the `errno` of that, for a library that failed to write and gave no reason."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


def _could_not_write(path: str | Path, code: int) -> OutputError:
    advice = _ADVICE.get(code, "fix that")
    return OutputError(
        code,
        f"could not write {path}: {os.strerror(code)}. Files already written are kept: {advice}, then run the same "
        "command again",
    )
