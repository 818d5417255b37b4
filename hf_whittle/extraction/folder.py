"""Save a student to a folder, which is checked before anything is computed."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from ..errors import OutputError
from ..files.atomic import atomic_folder
from ..files.disk import disk_errors
from ..files.paths import expanded
from ..record.lineage import Lineage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_folder(output_dir: str | Path, max_shard_size: int | str) -> contextlib.AbstractContextManager[Path]:
    """Make a folder that appears whole or not at all, where nothing exists yet."""
    check_shard_size(max_shard_size)
    return atomic_folder(check_new_folder(output_dir))


def check_shard_size(size: int | str) -> None:
    """Raise `ValueError` unless `size` is a size of files."""
    if not (re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", size, re.I) if isinstance(size, str) else size > 0):
        raise ValueError(f"max_shard_size must be a number of bytes above 0, or like '5GB', got {size!r}")


def check_new_folder(output_dir: str | Path) -> Path:
    """Resolve the path of a student's folder, and make its parent folders.

    Raises:
        OutputError: if the folder is not empty, or cannot be written.
    """
    folder = Path(os.path.realpath(expanded(output_dir)))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(
            f"{output_dir} exists already and is not an empty folder; choose another output_dir, or remove it"
        )
    if folder.is_mount() or folder == Path.cwd():
        raise OutputError(f"{output_dir} cannot be replaced as a whole; give a folder inside it")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    return folder


def save_student(student: "PreTrainedModel", folder: Path, max_shard_size: int | str) -> None:
    """Save a student's weights and configurations, and the record of its extraction."""
    with without_bars():
        student.save_pretrained(folder, max_shard_size=max_shard_size)
    Lineage.of(student).save(folder)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block; they would count the same tensors again."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
