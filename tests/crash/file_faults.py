"""Kill a process at one of its changes of files, as `ckpt-chaos` does, and truncate that file if asked.

`ckpt-chaos` 0.1.8 does not see three kinds of changes: single removals within `shutil.rmtree`, lines appended to an
open file, and safetensors written from numpy.
"""

import builtins
import functools
import hashlib
import io
import os
import re
import shutil
import sys
from pathlib import Path

KILLED = 137
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DIRECTORY_ARGUMENTS = {"os.remove": (1,), "os.rmdir": (1,), "os.mkdir": (2,), "os.rename": (2, 3), "os.link": (2, 3)}
"""Positions, among the arguments of an audit event, of the directory that each relative path starts from."""


class FileFaults:
    """Counts the changes of files below a folder by this process, and ends the process at one of them.

    Args:
        folder (`Path`): folder to watch.
        kill_at (`int`, *optional*): number of the event, from 0, before which the process ends; by default events are
            only counted.
        torn (`bool`, *optional*, defaults to `False`): whether that event still happens, with half of the file lost.

    Attributes:
        events (`list[tuple[str, str, bool]]`): kind, path in the folder, and whether it can be torn.
    """

    def __init__(self, folder, kill_at=None, torn=False):
        self.folder = os.path.realpath(folder)
        self.kill_at, self.torn = kill_at, torn
        self.events = []
        self._to_tear = None

    def arm(self):
        """Begin to count, for the rest of this process."""
        import safetensors.numpy
        import safetensors.torch
        import torch

        torch.save = self._watched(torch.save, "torch.save", 1)  # these write from C++ and Rust
        for module in (safetensors.torch, safetensors.numpy):
            module.serialize_file = self._watched(module.serialize_file, "safetensors", 1)
        io.open = builtins.open = self._watched_open(io.open)
        sys.addaudithook(self._hear)

    def finish(self):
        """Tear the file of the last event if it is to be torn; call this at the end of the program."""
        if self._to_tear is not None:
            self._tear()

    def _hear(self, event, args):
        if event == "open":
            path, _, flags = args
            if isinstance(path, (str, os.PathLike)) and flags & _WRITES:
                self._happens("open", self._inside(path), tearable=not flags & os.O_EXCL)
        elif event in _DIRECTORY_ARGUMENTS:
            for path, place in zip(args, _DIRECTORY_ARGUMENTS[event], strict=False):
                inside = self._inside(path, args[place])
                if inside is not None:
                    self._happens(event, inside)
                    return

    def _inside(self, path, directory=-1):
        """Path relative to the folder; `None` outside it."""
        path = os.fspath(path)
        if directory not in (-1, None):
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
        path = os.path.abspath(path)
        return os.path.relpath(path, self.folder) if path.startswith(self.folder + os.sep) else None

    def _happens(self, kind, path, tearable=False):
        """Count an event that is about to happen; `True` if the caller is to do half of it."""
        if path is None:
            return False
        if self._to_tear is not None:
            self._tear()
        self.events.append((kind, path, tearable))
        if self.kill_at != len(self.events) - 1:
            return False
        if not self.torn:
            os._exit(KILLED)
        self._to_tear = os.path.join(self.folder, path)
        return True

    def _tear(self):
        path, self._to_tear = self._to_tear, None
        if os.path.isfile(path):
            os.truncate(path, os.path.getsize(path) // 2)
        os._exit(KILLED)

    def _watched(self, write, kind, position):
        @functools.wraps(write)
        def watched(*args, **kwargs):
            path = args[position]
            if isinstance(path, (str, os.PathLike)):
                self._happens(kind, self._inside(path), tearable=True)
            return write(*args, **kwargs)

        return watched

    def _watched_open(self, original):
        @functools.wraps(original)
        def watched(file, mode="r", *args, **kwargs):
            stream = original(file, mode, *args, **kwargs)
            inside = "a" in mode and isinstance(file, (str, os.PathLike)) and self._inside(file)
            return _Appending(stream, functools.partial(self._happens, "append", inside, True)) if inside else stream

        return watched


class FileStates(FileFaults):
    """Copies the folder as a kill at each of the events would leave it, unless another would leave it the same.

    Half of an addition to a file is left to a real kill, since the stream may hold what was added before.

    Args:
        folder (`Path`): folder to watch.
        into (`Path`): folder of the copies.

    Attributes:
        states (`list[tuple[int, bool]]`): event and whether it is torn, of each copy and of additions that are torn.
    """

    def __init__(self, folder, into):
        super().__init__(folder)
        self.states = []
        self._into, self._seen = into, set()

    def copy_of(self, number, torn):
        """The copy of a state."""
        return self._into / f"{number}{' torn' if torn else ''}"

    def finish(self):
        self._copy_torn()

    def _happens(self, kind, path, tearable=False):
        if path is None:
            return False
        self._copy_torn()
        self.events.append((kind, path, tearable))
        self._copy(torn=False)
        if kind == "append":
            self.states.append((len(self.events) - 1, True))
        return False

    def _copy_torn(self):
        """Copy the folder with half of the last event's file lost, which it has by now."""
        if self.events and self.events[-1][2] and self.events[-1][0] != "append":
            self._copy(torn=True)

    def _copy(self, torn):
        number = len(self.events) - 1
        found = contents(self.folder)
        path = self.events[number][1]
        if torn and found.get(path) is not None:
            found[path] = found[path][: len(found[path]) // 2]
        digest = hashlib.sha256(repr(sorted((steady_name(name), data) for name, data in found.items())).encode())
        if digest.digest() in self._seen:
            return
        self._seen.add(digest.digest())
        self.states.append((number, torn))
        copy = self.copy_of(number, torn)
        shutil.copytree(self.folder, copy, symlinks=True)
        if torn and found.get(path) is not None:
            os.truncate(copy / path, len(found[path]))


class _Appending:
    """A file whose every addition is an event."""

    def __init__(self, stream, happens):
        self._stream, self._happens = stream, happens

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        half = self._happens()
        self._stream.write(text[: len(text) // 2] if half else text)
        if half:
            self._stream.flush()
            os._exit(KILLED)


def contents(folder):
    """Bytes of every file below a folder, and `None` for every folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")
    }


def steady_name(path):
    """A path without its random part."""
    return re.sub(r"(_partial-\S+\.)\w{8}(?=\.|$)", r"\1*", path)
