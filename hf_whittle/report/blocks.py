"""Parts that the page of a report is made of; the template words nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..record.samples import Sample
from .look import Figure


@dataclass(frozen=True)
class Prose:
    """A paragraph; escaped unless it is `markupsafe.Markup`."""

    kind: ClassVar[str] = "prose"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Tiles:
    """Numbers to see first: each with its name."""

    kind: ClassVar[str] = "tiles"
    items: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table; cells to the right of the first `words` columns are numbers, and a folded one opens on a click."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: int = 1
    folded: str = ""


@dataclass(frozen=True)
class Rows:
    """Facts by name."""

    kind: ClassVar[str] = "rows"
    items: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Samples:
    """Prompts and what a student wrote."""

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id (`str`): its anchor.
        title (`str`): its heading.
        blocks (`list`): its parts; a section without any is left out.
        is_paired (`bool`): whether wide screens show its figures side by side.
    """

    id: str
    title: str
    blocks: list[Any] = field(default_factory=list)
    is_paired: bool = False

    @property
    def figures(self) -> list[Figure]:
        return [block for block in self.blocks if isinstance(block, Figure)]
