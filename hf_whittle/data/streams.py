"""Streams of blocks: documents are held out, tokenized, packed, mixed and shuffled while they are read.

A stream never ends: a source that does begins again. Its place is a few numbers, so it goes on at any block without
reading what came before; only rows of the same shard are read again, and a window of blocks is packed again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from ..errors import DataError, WhittleError
from .documents import split_of
from .encoding import Encoder
from .mixing import next_source
from .packing import TOKENS, checked_rows

_ROWS = 100  # read and encoded at a time
WINDOW = 1024
"""Blocks that are shuffled together."""


@dataclass(frozen=True)
class StreamedSource:
    """A source of a stream.

    Args:
        open (`Callable[[], datasets.IterableDataset]`): opens it from its beginning.
        encoder (`TextEncoder` or `TokenEncoder`): makes token ids of its rows.
        weight (`float`, *optional*, defaults to 1.0): its share of the blocks, in proportion to those of others.
        fractions (`Mapping[str, float]`, *optional*): share of its documents in each held-out split, as for
            `split_documents`.
        key (`str`, *optional*): column with the name of a document, to hold out by; the encoder's by default.
        name (`str`, *optional*): its name in errors.
    """

    open: Callable[[], IterableDataset]
    encoder: Encoder
    weight: float = 1.0
    fractions: Mapping[str, float] = field(default_factory=dict)
    key: str | None = None
    name: str = "the stream"

    def rows(self) -> IterableDataset:
        """Its rows from the beginning.

        Raises:
            DataError: if it lacks a column, or cannot be read.
        """
        with self.named_errors():
            rows = checked_rows(self.open(), self.encoder)
        if self.key is not None and self.key not in rows.column_names:
            raise DataError(f"{self.name} has no column {self.key!r}, only {rows.column_names}; name one of these")
        return rows

    def encode(self, rows: list[dict[str, Any]], split: str) -> list[np.ndarray]:
        """Token ids of those rows that belong to a split."""
        column, key = self.encoder.column, self.key or self.encoder.column
        return self.encoder([row[column] for row in rows if split_of(row[key], self.fractions) == split])

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Name the source in any error of reading it."""
        try:
            yield
        except WhittleError:
            raise
        except Exception as error:  # every builder of datasets raises errors of its own
            reason = " ".join(str(error.__cause__ or error).split()) or repr(error)
            raise DataError(f"cannot read {self.name}: {reason}; correct it, or leave it out") from error


class BlockReader:
    """Reads the blocks of one split of a source; its place between any two of them can be noted.

    Args:
        source (`StreamedSource`): the source.
        block_size (`int`): tokens of a block.
        split (`str`, *optional*, defaults to `"train"`): the split.
        repeat (`bool`, *optional*, defaults to `True`): whether to begin again at the end.
        place (`dict`, *optional*): a place that another reader of the same source gave.

    Raises:
        DataError: while it reads, if the split has less than a block, or a row cannot be read.
    """

    def __init__(
        self,
        source: StreamedSource,
        block_size: int,
        split: str = "train",
        *,
        repeat: bool = True,
        place: dict[str, Any] | None = None,
    ):
        self._source, self._block_size, self._split, self._repeat = source, block_size, split, repeat
        self._documents = source.rows()
        self._beginning = self._documents.state_dict()
        self._rest = np.zeros(0, dtype=np.int32)
        self._blocks = np.zeros((0, block_size), dtype=np.int32)  # of the rows read last
        self._taken, self._has_read_any = 0, place is not None
        self._next = self._beginning  # state of `_documents` at the next row, which they know once they are read
        if place is not None:
            self._next, self._rest = place["documents"], np.asarray(place["rest"], dtype=np.int32)
            self._documents.load_state_dict(self._next)
        self._before: tuple[dict[str, Any], np.ndarray] = self._next, self._rest  # what `_blocks` are made from
        self._rows = iter(self._documents)
        for _ in range(place["taken"] if place else 0):
            next(self)

    def place(self) -> dict[str, Any]:
        """The place of the next block, as values of JSON."""
        documents, rest = self._before
        return {"documents": documents, "rest": rest.tolist(), "taken": self._taken}

    def __iter__(self) -> "BlockReader":
        return self

    def __next__(self) -> np.ndarray:
        while self._taken == len(self._blocks):
            self._read()
        self._taken += 1
        self._has_read_any = True
        return self._blocks[self._taken - 1]

    def _read(self) -> None:
        """Read some rows, and cut their tokens into blocks."""
        before = self._next, self._rest
        with self._source.named_errors():
            rows = list(islice(self._rows, _ROWS))
            encoded = self._source.encode(rows, self._split)
        if not rows:
            self._begin_again()
            return
        self._next = self._documents.state_dict()
        tokens = np.concatenate([self._rest, *encoded])
        number = len(tokens) // self._block_size
        self._before, self._taken = before, 0
        self._blocks = tokens[: number * self._block_size].reshape(number, self._block_size)
        self._rest = tokens[number * self._block_size :].copy()

    def _begin_again(self) -> None:
        if not self._has_read_any:
            raise DataError(
                f"the split {self._split!r} of {self._source.name} is empty, or has less than one block of "
                f"{self._block_size} tokens; give more documents, a smaller block_size, or another held-out fraction"
            )
        if not self._repeat:
            raise StopIteration
        self._next, self._has_read_any = self._beginning, False
        self._documents.load_state_dict(self._next)
        self._rows = iter(self._documents)


class _Mixer:
    """Takes blocks of several sources in the order of `next_source`."""

    def __init__(self, stream: "BlockStream", place: dict[str, Any] | None, *, repeat: bool):
        sources = stream.sources
        if place and len(place["sources"]) != len(sources):
            raise DataError(
                f"the checkpoint is of {len(place['sources'])} streamed sources, this stream has {len(sources)}; "
                "resume with the same sources"
            )
        self._weights = [source.weight for source in sources]
        self._taken = list(place["taken"]) if place else [0] * len(sources)
        places = place["sources"] if place else [None] * len(sources)
        self._readers = {
            number: BlockReader(source, stream.block_size, repeat=repeat, place=place)
            for number, (source, place) in enumerate(zip(sources, places, strict=True))
        }

    def place(self) -> dict[str, Any]:
        sources = [reader.place() for reader in self._readers.values()]
        return {"blocks": sum(self._taken), "taken": list(self._taken), "sources": sources}

    def window(self, number: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The place before the next blocks, and these."""
        return self.place(), [block for _, block in islice(self, number)]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the source of each block, and the block."""
        while self._readers:
            source = next_source(self._weights, self._taken, self._readers)
            block = next(self._readers[source], None)
            if block is None:
                del self._readers[source]
            else:
                self._taken[source] += 1
                yield source, block


class BlockStream(torch.utils.data.IterableDataset):
    """Training blocks of one source or several, packed while they are read by a thread; it never ends.

    Blocks are shuffled in windows of `WINDOW`. Under `DistillationTrainer` or `SupernetTrainer`, a training resumes at
    the block after its checkpoint, on any number of processes: all of them read the same stream, and each keeps its
    own part of every batch.

    Args:
        sources (`Sequence[StreamedSource]`): the sources, mixed by weight.
        block_size (`int`): tokens of a block.
    """

    def __init__(self, sources: Sequence[StreamedSource], block_size: int):
        self.sources, self.block_size = list(sources), block_size
        self._seed = 0
        self._start: dict[str, Any] | None = None
        self._places: list[dict[str, Any]] = []  # of the windows that were read

    def first(self, number: int, *, by_source: bool = True) -> Dataset:
        """The first blocks of the mixture; fewer if there are fewer, none repeated.

        Args:
            number (`int`): most blocks.
            by_source (`bool`, *optional*, defaults to `True`): whether one source stands after the other.
        """
        found = list(islice(_Mixer(self, None, repeat=False), number))
        blocks = [block for _, block in (sorted(found, key=lambda each: each[0]) if by_source else found)]
        return Dataset.from_dict({"input_ids": blocks}, features=TOKENS).with_format("numpy")

    def begin(self, seed: int = 0, place: dict[str, Any] | None = None) -> None:
        """Let the next iteration shuffle by a seed, and begin at a place that `place_of` gave."""
        self._seed, self._start = seed, place

    def place_of(self, block: int) -> dict[str, Any] | None:
        """The place of a block that was yielded, or is the next, as values of JSON; `None` if it is not known."""
        before = [place for place in self._places if place["blocks"] <= block]
        return {**before[-1], "next": block} if before else None

    def forget(self, block: int) -> None:
        """Let go of places before a block."""
        while len(self._places) > 1 and self._places[1]["blocks"] <= block:
            del self._places[0]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if torch.utils.data.get_worker_info() is not None:
            raise DataError("a stream reads ahead by itself; set dataloader_num_workers to 0")
        start, self._places = self._start, []
        mixer = _Mixer(self, start, repeat=True)
        passed = start["next"] - start["blocks"] if start else 0
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(mixer.window, WINDOW)
            while True:
                place, blocks = pending.result()
                self._places.append(place)
                pending = ahead.submit(mixer.window, WINDOW)
                order = np.random.default_rng([self._seed, place["blocks"] // WINDOW]).permutation(WINDOW)
                for row in order[passed:]:
                    yield {"input_ids": blocks[row]}
                passed = 0


def held_out_blocks(source: StreamedSource, numbers: Mapping[str, int], block_size: int) -> dict[str, Dataset]:
    """Read the first held-out blocks of a source, in one pass that ends as soon as they are complete.

    Args:
        source (`StreamedSource`): the source.
        numbers (`Mapping[str, int]`): most blocks of each split.
        block_size (`int`): tokens of a block.

    Raises:
        DataError: if a split has less than a block.
    """
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in numbers}
    wanted = {name: number * block_size for name, number in numbers.items() if number}
    rows, documents = iter(source.rows()), 0
    while wanted:
        with source.named_errors():
            some = list(islice(rows, _ROWS))
            for name in wanted:
                tokens[name] += source.encode(some, name)
        documents += len(some)
        wanted = {name: number for name, number in wanted.items() if sum(map(len, tokens[name])) < number and some}
    found = {}
    for name, number in numbers.items():
        ids = np.concatenate([np.zeros(0, np.int32), *tokens[name]])[: number * block_size]
        if number and len(ids) < block_size:
            raise DataError(
                f"the split {name!r} of {source.name}, {documents} documents, has {len(ids)} tokens, less than one "
                f"block of {block_size}; give more documents, or raise its fraction"
            )
        blocks = ids[: len(ids) // block_size * block_size].reshape(-1, block_size)
        found[name] = Dataset.from_dict({"input_ids": blocks}, features=TOKENS).with_format("numpy")
    return found
