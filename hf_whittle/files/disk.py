"""A disk that refuses, in whatever words a library says so, as one error that says what to do."""

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
"""What to do about an error of the disk."""
_OF_A_CAUSE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
"""What makes another error one of the disk, if it was its cause; the others may be what a program expects."""
_NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")  # libraries in Rust; pyarrow and copies of Python's
_WITHOUT_REASON = re.compile(
    r"inline_container\.cc|PytorchStreamWriter|basic_ios::clear|iostream error"  # torch
    r"|^Parent directory .* does not exist|^File .* cannot be opened"  # torch too
    r"|^\d+ requested and \d+ written"  # numpy
)


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into an `OutputError` that says what to do.

    Args:
        path (`str` or `Path`): what is written. Where an error names a file that lies elsewhere, a full disk is told of
            that one, and other errors stay what they are: it may have been read.
    """
    try:
        yield
    except WhittleError:
        raise
    except Exception as error:
        code, elsewhere = refusal(error, path), _elsewhere(error, path)
        is_read = elsewhere is not None or str(error).startswith("Caught ")  # by a process that loads data
        if code is None or (is_read and code not in _OF_A_CAUSE):
            raise
        raise _could_not_write(elsewhere or path, code) from error


def _elsewhere(error: Exception, path: str | Path) -> str | None:
    """The file that an error names, if it does not lie beside or below a path."""
    named = getattr(error, "filename", None)
    if not isinstance(named, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(named)
    return None if Path(name).absolute().is_relative_to(Path(path).absolute().parent) else name


def refusal(error: BaseException, path: str | Path) -> int | None:
    """The number of the disk's error that an exception tells of, by itself or by its cause, if it does."""
    code = _code(error)
    if code in _ADVICE:
        return code
    cause = error.__cause__
    while cause is not None:
        code = _code(cause)
        if code in _OF_A_CAUSE:
            return code
        cause = cause.__cause__
    if _WITHOUT_REASON.search(str(error)):
        context = error.__context__
        code = None if context is None else _code(context)
        return code if code in _ADVICE else _tried(Path(path))
    return None


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if "Not enough disk space" in str(error):  # datasets
        return errno.ENOSPC
    number = _NUMBER.search(str(error))
    return None if number is None else int(number[1] or number[2])


def _tried(path: Path) -> int:
    """The error that writing a megabyte gives where a library could not write and does not say why."""
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
    advice = _ADVICE.get(code, "mend that")
    return OutputError(
        code,
        f"could not write {path}: {os.strerror(code)}. What is on disk is kept: {advice}, then run the same command "
        "again",
    )
