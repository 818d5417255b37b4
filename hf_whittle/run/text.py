"""The text of a recipe as blocks: to train on, to heal with, to search on and to report results on."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.documents import STANDARD_LIBRARY, documents_fingerprint, load_documents, split_documents, split_of
from ..data.encoding import Encoder, TextEncoder, TokenEncoder
from ..data.mixing import join_blocks, mix_blocks, mixture, shares
from ..data.packing import pack_rows
from ..data.streamed_documents import stream_documents, stream_fingerprint
from ..data.streams import BlockStream, StreamedSource, held_out_blocks
from ..processes import first_on_each_machine, in_each
from ..recipe.data import DataSection, WeightedSource

_DOCUMENTS = 16
"""Documents of a sample, at least, if there are so many."""


@dataclass(frozen=True)
class Text:
    """The text of a recipe.

    Args:
        data (`DataSection`): the section of the recipe.
        tokenizer (`Callable`): gives the tokenizer.
        vocab_size (`Callable`): gives the entries of the model's vocabulary.
    """

    data: DataSection
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    vocab_size: Callable[[], int]
    _first: dict[tuple[int, bool], Dataset] = field(default_factory=dict, init=False)

    @cached_property
    def blocks(self) -> dict[str, Any]:
        """Packed blocks of the splits `train`, `search` and `test`; those to train on may be a `BlockStream`."""
        return self._streamed() if self.data.streaming else self._loaded()

    def training_blocks(self, number: int, *, by_source: bool = True) -> Dataset:
        """At most `number` training blocks: evenly over all of them, the first ones of a stream.

        By source, evenly spread parts of them have the sources in their proportions, as those of the mixture might not;
        otherwise they stand as in the mixture, of which every beginning has.
        """
        train = self.blocks["train"]
        if not isinstance(train, BlockStream):
            return self._spread([each["train"] for each in self._by_source], number, by_source=by_source)
        key = number, by_source
        if key not in self._first:
            self._first[key] = train.first(number, by_source=by_source)
        return self._first[key]

    def read(self) -> None:
        """Read the blocks in every process, one on each machine before the others, which then find them in a cache."""
        read = in_each if self.data.streaming else first_on_each_machine  # only a text that is loaded is cached
        read(lambda: self.blocks)

    def documents(self, split: str, tokens: int) -> list[str]:
        """Documents of a split that have about so many tokens, drawn at random; the first ones of a stream.

        Sources have their shares, and of a long document the beginning is taken, so that there are several.
        """
        parts = zip(self.data.all_sources, self._weights, strict=True)
        longest, whole = max(self.data.block_size, tokens // _DOCUMENTS), sum(self._weights)
        return [
            text
            for number, (source, weight) in enumerate(parts)
            for text in self._beginnings(self._texts(number, source, split), tokens * weight / whole, longest)
        ]

    def _texts(self, number: int, source: WeightedSource, split: str) -> Iterator[str]:
        """Documents of a split of a source."""
        column = source.text_column
        if not self.data.streaming:
            rows = self._splits[number][split]
            yield from (rows[row][column] for row in Random(0).sample(range(len(rows)), len(rows)))
            return
        key, stream = source.document_column or column, self._stream(source)
        with stream.named_errors():
            yield from (row[column] for row in stream.rows() if split_of(row[key], self.data.fractions) == split)

    def _beginnings(self, texts: Iterator[str], tokens: float, longest: int) -> Iterator[str]:
        """Beginnings of documents, until there are so many tokens."""
        tokenizer: Any = self.tokenizer()
        for text in texts:
            if tokens <= 0:
                return
            found = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else 0
            taken = min(found, longest, math.ceil(tokens))
            tokens -= taken
            if taken:
                yield text[: len(text) * taken // found]

    def fingerprint(self) -> str:
        """A hash of the text: of all of it, or of what tells a streamed one without reading it."""
        found = [self._fingerprint(source) for source in self.data.all_sources]
        return found[0] if len(found) == 1 else hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def _fingerprint(self, source: WeightedSource) -> str:
        if self.data.streaming and source.dataset != STANDARD_LIBRARY:
            return stream_fingerprint(source.dataset, source.files, source.dataset_config, source.dataset_revision)
        return documents_fingerprint(lambda: load_documents(**_named(source)), source.dataset, source.files)

    def _encoder(self, source: WeightedSource) -> Encoder:
        if source.token_column is None:
            return TextEncoder(self.tokenizer(), source.text_column)
        end = None if source.packed else self.tokenizer().eos_token_id
        size = self.data.block_size if source.packed else None
        return TokenEncoder(self.vocab_size(), source.token_column, end, size)

    @cached_property
    def _splits(self) -> list[dict[str, Dataset]]:
        """The documents of each split, by source."""
        found = []
        for source in self.data.all_sources:
            key = source.document_column or source.token_column or source.text_column
            found.append(split_documents(load_documents(**_named(source)), self.data.fractions, key=key))
        return found

    @cached_property
    def _by_source(self) -> list[dict[str, Dataset]]:
        """All blocks of each split, by source."""
        parts = zip(self.data.all_sources, self._splits, strict=True)
        return [self._blocks_of(source, splits) for source, splits in parts]

    @property
    def _weights(self) -> list[float]:
        return [source.weight for source in self.data.all_sources]

    def _spread(self, blocks: list[Dataset], number: int, *, by_source: bool = True) -> Dataset:
        """At most `number` blocks, evenly over those of each source."""
        own = shares(self._weights, number, [len(each) for each in blocks])
        found = join_blocks([spread(each, share) for each, share in zip(blocks, own, strict=True) if share])
        return found if by_source or len(own) == 1 else found.select(mixture(self._weights, own))

    def _loaded(self) -> dict[str, Any]:
        train = mix_blocks([each["train"] for each in self._by_source], self._weights)
        held_out = self.data.held_out.items()
        return {"train": train} | {
            name: self._spread([each[name] for each in self._by_source], number) for name, number in held_out
        }

    def _blocks_of(self, source: WeightedSource, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        """All blocks of each split of a source."""
        encoder = self._encoder(source)
        return {
            name: pack_rows(split, encoder, self.data.block_size, self.data.num_proc) for name, split in splits.items()
        }

    def _streamed(self) -> dict[str, Any]:
        sources = [self._stream(source) for source in self.data.all_sources]
        numbers = {
            name: shares(self._weights, number, [number] * len(sources)) for name, number in self.data.held_out.items()
        }
        found = [
            held_out_blocks(source, {name: own[place] for name, own in numbers.items()}, self.data.block_size)
            for place, source in enumerate(sources)
        ]
        held_out = {name: join_blocks([each[name] for each in found if len(each[name])]) for name in numbers}
        return {"train": BlockStream(sources, self.data.block_size), **held_out}

    def _stream(self, source: WeightedSource) -> StreamedSource:
        named = "the files " + ", ".join(source.files) if source.files else f"the dataset {source.dataset}"
        return StreamedSource(
            lambda: stream_documents(**_named(source)),
            self._encoder(source),
            source.weight,
            self.data.fractions,
            source.document_column,
            named,
        )


def spread(blocks: Dataset, number: int) -> Dataset:
    """At most `number` blocks, evenly over all of them."""
    if len(blocks) <= number:
        return blocks
    return blocks.select([i * len(blocks) // number for i in range(number)])


def _named(source: WeightedSource) -> dict[str, Any]:
    """Arguments of `load_documents` and of `stream_documents`."""
    return {
        "dataset": source.dataset,
        "files": source.files,
        "config": source.dataset_config,
        "split": source.split,
        "text_column": source.text_column,
        "token_column": source.token_column,
        "revision": source.dataset_revision,
    }
