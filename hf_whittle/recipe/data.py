"""The section `data` of a recipe: one text or several, read whole or as a stream."""

from dataclasses import dataclass, field, fields

from ..checks import check_integers, check_positive
from ..files.paths import expanded


@dataclass
class SourceSection:
    """A text or a tokenized dataset: a dataset of the Hub or on disk, files, or Python's standard library."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub, a local folder, or `python-standard-library`."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of the dataset on the Hub; the newest by default."}
    )
    split: str = field(
        default="train", metadata={"help": "Split of the dataset; `train[:1%]` takes a part, unless streamed."}
    )
    files: list[str] | None = field(
        default=None,
        metadata={"help": "Text files, a document each, or tables with a column of text; or patterns of them."},
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    token_column: str | None = field(
        default=None, metadata={"help": "Column that holds token ids of the model's own tokenizer, instead of text."}
    )
    packed: bool = field(
        default=False, metadata={"help": "Whether each row of token_column is a block already, of block_size tokens."}
    )
    document_column: str | None = field(
        default=None,
        metadata={"help": "Column that names a document, to hold out by; the text or the ids by default."},
    )

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset = expanded(self.dataset)
        if self.files is not None:
            self.files = [expanded(path) for path in self.files]
        if self.packed and self.token_column is None:
            raise ValueError("packed has no effect on text; name the column of token ids as token_column")

    @property
    def is_named(self) -> bool:
        """Whether there is a dataset or files, and not both."""
        return (self.dataset is None) != (self.files is None)


@dataclass
class WeightedSource(SourceSection):
    """One of several sources."""

    weight: float = field(
        default=1.0, metadata={"help": "Share of the blocks, in proportion to the weights of the other sources."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "weight")
        if not self.is_named:
            raise ValueError("give either dataset or files")


@dataclass
class DataSection(SourceSection):
    """The text: one source, or a list of them, and the blocks that are made of it."""

    sources: list[WeightedSource] | None = field(
        default=None,
        metadata={"help": "Several sources, each with its weight and the keys of a single one: dataset or files, ..."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read, tokenize and pack while training, with nothing on disk; needs training.max_steps."},
    )
    block_size: int = field(default=1024, metadata={"help": "Tokens in a block."})
    search_fraction: float = field(default=0.01, metadata={"help": "Share of the documents to search on."})
    test_fraction: float = field(default=0.01, metadata={"help": "Share of the documents to report results on."})
    search_tokens: int = field(default=65536, metadata={"help": "Most tokens that a candidate is evaluated on."})
    test_tokens: int = field(default=262144, metadata={"help": "Most tokens an evaluation of training reads."})
    calibration_tokens: int = field(default=32768, metadata={"help": "Most training tokens that healing fits to."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, {"block_size": 2, "search_tokens": 1, "test_tokens": 1, "calibration_tokens": 1})
        if self.num_proc is not None:
            check_integers(self, {"num_proc": 1})
        for name in ("search_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        self._check_sources()
        if self.streaming and self.num_proc is not None:
            raise ValueError("num_proc has no effect with streaming, which tokenizes in a thread; leave it out")

    def _check_sources(self) -> None:
        if self.sources is None:
            return
        if not self.sources:
            raise ValueError("sources is empty; give a source, or dataset or files instead")
        own = [item.name for item in fields(SourceSection) if getattr(self, item.name) != item.default]
        if own:
            raise ValueError(f"{', '.join(own)} beside sources would not be read; give them in each source")

    @property
    def all_sources(self) -> list[WeightedSource]:
        """The sources; a single one has weight 1."""
        if self.sources is not None:
            return self.sources
        return [WeightedSource(**{item.name: getattr(self, item.name) for item in fields(SourceSection)})]

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the documents in each held-out split."""
        return {"search": self.search_fraction, "test": self.test_fraction}

    @property
    def held_out(self) -> dict[str, int]:
        """Most blocks of each held-out split."""
        tokens = {"search": self.search_tokens, "test": self.test_tokens}
        return {name: max(1, number // self.block_size) for name, number in tokens.items()}
