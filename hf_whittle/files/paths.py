"""Paths as a user gives them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> str:
    """Replace `~` at the beginning of a path by the user's home; a name on the Hub stays as it is."""
    return os.path.expanduser(os.fspath(path))


def is_local(name: str) -> bool:
    """Return whether a name is a path on this machine rather than a repository on the Hub."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or Path(name).is_absolute()
