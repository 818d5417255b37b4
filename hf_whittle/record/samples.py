"""`samples.json`: prompts and the text that a student wrote after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.text import read_json, write_json
from .facts import Facts

SAMPLES_FILE = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Sample(Facts):
    """A prompt, and the text that a student continued it with."""

    prompt: str
    continuation: str


def save_samples(folder: str | Path, samples: Sequence[Sample]) -> None:
    """Write the file into a folder."""
    write_json(Path(folder) / SAMPLES_FILE, [sample.to_dict() for sample in samples])


def load_samples(path: str | Path) -> list[Sample]:
    """Read a file; there are no samples without one.

    Raises:
        TypeError, ValueError: if it holds something else.
    """
    return [Sample.from_dict(row) for row in read_json(path)] if Path(path).is_file() else []
