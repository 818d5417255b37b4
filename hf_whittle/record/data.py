"""Facts of the training text: its sources, and how it was cut."""

from dataclasses import dataclass

from .facts import Facts


@dataclass(frozen=True, kw_only=True)
class TextFacts(Facts):
    """A source of training text.

    Args:
        files (`list[str]`, *optional*): last names of the patterns of files.
        folder (`str`, *optional*): last name of a data set's folder.
        dataset (`str`, *optional*): name of a data set on the Hub.
        weight (`float`, *optional*): its share of the blocks, in proportion to those of others.
    """

    files: list[str] | None = None
    folder: str | None = None
    dataset: str | None = None
    weight: float | None = None

    @property
    def in_words(self) -> str:
        """Its name."""
        name = self.dataset or self.folder or ", ".join(self.files or [])
        return name if self.weight is None else f"{name} ({self.weight:g})"


@dataclass(frozen=True, kw_only=True)
class DataFacts(Facts):
    """The training text.

    Args:
        files (`list[str]`, *optional*): last names of the patterns of files.
        folder (`str`, *optional*): last name of a data set's folder.
        dataset (`str`, *optional*): name of a data set on the Hub.
        sources (`tuple[TextFacts, ...]`): several sources with their weights, instead of these.
        block_size (`int`): tokens of a block.
    """

    files: list[str] | None = None
    folder: str | None = None
    dataset: str | None = None
    sources: tuple[TextFacts, ...] = ()
    block_size: int

    @property
    def in_words(self) -> str:
        """Names of the sources; those of several with their weights."""
        own = TextFacts(files=self.files, folder=self.folder, dataset=self.dataset)
        return "; ".join(source.in_words for source in self.sources) if self.sources else own.in_words

    @property
    def datasets(self) -> list[str]:
        """Names of data sets on the Hub."""
        return [each.dataset for each in self.sources or (self,) if each.dataset is not None]
