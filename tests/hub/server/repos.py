"""Repositories: their files, commits and refs, in memory."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .protocol import Refusal

LFS_SIZE = 10 * 2**20
LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".h5", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def lfs_pointer(digest: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """Whether a file goes to large file storage: by its name, its size, or because it is not text."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample[:512])


@dataclass(frozen=True)
class File:
    """A file of a commit; `oid` is git's, that of the pointer if the content is in large file storage."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def to_dict(self, digest: str) -> dict[str, Any]:
        lfs = {digest: self.sha256, "size": self.size, "pointerSize": len(lfs_pointer(self.sha256, self.size))}
        return {"size": self.size, **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, File] = field(repr=False)


@dataclass
class Repo:
    """A repository: its commits, its refs, and the large files sent to it."""

    type: str
    id: str
    private: bool = False
    gated: bool | str = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    objects: set[str] = field(default_factory=set)
    xet_folders: list[Path] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/{'' if self.type == 'model' else 'datasets/'}{self.id}"

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        if name := self.ref(revision):
            return self.commits[self.refs[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for oid in self.commits:
                if oid.startswith(revision):
                    return self.commits[oid]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> Iterator[Commit]:
        commit = self.find(revision)
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit
