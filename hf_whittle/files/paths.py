"""Paths as a user gives them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> str:
    """A path as it was given, but for `~`, which is the user's home; a name on the Hub stays as it is."""
    return os.path.expanduser(os.fspath(path))


def is_local(name: str) -> bool:
    """Whether a name is of a path on this machine rather than one on the Hub."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or Path(name).is_absolute()
