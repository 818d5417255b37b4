"""Facts of the training text: its sources, and how it was cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.paths import is_local
from .facts import Facts


@dataclass(frozen=True, kw_only=True)
class NamedText(Facts):
    """The name of a text.

    Args:
        files (`list[str]`, *optional*): last names of the patterns of files.
        folder (`str`, *optional*): last name of a data set's folder.
        dataset (`str`, *optional*): name of a data set on the Hub.
    """

    files: list[str] | None = None
    folder: str | None = None
    dataset: str | None = None

    @property
    def in_words(self) -> str:
        """Its name."""
        return self.dataset or self.folder or ", ".join(self.files or [])


@dataclass(frozen=True, kw_only=True)
class TextFacts(NamedText):
    """A source of training text, by its name.

    Args:
        weight (`float`, *optional*): its share of the blocks, in proportion to those of others.
    """

    weight: float | None = None

    @property
    def in_words(self) -> str:
        """Its name, with its weight."""
        name = super().in_words
        return name if self.weight is None else f"{name} ({self.weight:g})"


@dataclass(frozen=True, kw_only=True)
class DataFacts(NamedText):
    """The training text, by its name or its sources.

    Args:
        sources (`tuple[TextFacts, ...]`): several sources with their weights, instead of a name.
        block_size (`int`): tokens of a block.
    """

    sources: tuple[TextFacts, ...] = ()
    block_size: int

    @property
    def in_words(self) -> str:
        """Names of the sources; those of several with their weights."""
        return "; ".join(source.in_words for source in self.sources) or super().in_words

    @property
    def datasets(self) -> list[str]:
        """Names of data sets on the Hub."""
        return [each.dataset for each in self.sources or (self,) if each.dataset is not None]


def name_of_text(dataset: str | None, files: Sequence[str] | None) -> dict[str, Any]:
    """Fields of `NamedText` for a text: files and folders of this machine have their last name."""
    if files:
        return {"files": [Path(pattern).name for pattern in files]}
    name = str(dataset)
    return {"folder": Path(name).resolve().name} if is_local(name) else {"dataset": name}
