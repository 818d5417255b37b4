"""Paths as a user gives them."""

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """A path as it was given, but for `~`, which is the user's home; a name on the Hub stays as it is."""
    return os.path.expanduser(os.fspath(path))
