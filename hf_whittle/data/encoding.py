"""Turn rows of a dataset into token ids: text is tokenized, and ids of a tokenized dataset are checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, VocabularyError
from ..fingerprints import tokenizer_fingerprint
from .text_files import check_holds_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizes documents, each followed by an end-of-text token; documents without text give nothing.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a tokenizer with an `eos_token_id`.
        column (`str`, *optional*, defaults to `"text"`): column of the text.

    Raises:
        DataError: if the tokenizer has no end-of-text token.
    """

    tokenizer: "PreTrainedTokenizerBase"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token to put between documents; set tokenizer.eos_token")

    @property
    def identity(self) -> list[Any]:
        """Everything that tokens of a given text depend on."""
        return [tokenizer_fingerprint(self.tokenizer), self.tokenizer.eos_token_id, self.column]

    def check(self, features: Mapping[str, Any]) -> None:
        """Raise `DataError` unless the column holds text."""
        check_holds_text(features, self.column)

    def __call__(self, values: Sequence[Any]) -> list[np.ndarray]:
        """Return the token ids of some documents, `int32`."""
        texts = [text for text in values if text]
        if not texts:  # tokenizers refuse an empty list
            return []
        tokenizer: Any = self.tokenizer
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        end = tokenizer.eos_token_id
        return [np.asarray([*ids, end], dtype=np.int32) for ids in encoded]


@dataclass(frozen=True)
class TokenEncoder:
    """Checks the token ids of a tokenized dataset.

    Args:
        vocab_size (`int`): entries of the vocabulary.
        column (`str`, *optional*, defaults to `"input_ids"`): column of the ids.
        eos_token_id (`int`, *optional*): put after each row that does not end with it; nothing is if `None`.
        block_size (`int`, *optional*): length that all rows must have; any if `None`.

    Raises:
        DataError: when called, if a row is no list of integers, or of another length.
        VocabularyError: when called, if an id is not in the vocabulary.
    """

    vocab_size: int
    column: str = "input_ids"
    eos_token_id: int | None = None
    block_size: int | None = None

    @property
    def identity(self) -> list[Any]:
        """Everything that tokens of given rows depend on."""
        return ["tokens", self.column, self.eos_token_id]

    def check(self, features: Mapping[str, Any]) -> None:
        """Raise `DataError` unless the column holds lists of integers."""
        kind = str(getattr(getattr(features[self.column], "feature", None), "dtype", ""))
        if not kind.startswith(("int", "uint")):
            raise DataError(
                f"the column {self.column!r} holds {features[self.column]}, not lists of token ids; name such a column "
                "as token_column, or a column of text as text_column"
            )

    def __call__(self, values: Sequence[Any]) -> list[np.ndarray]:
        """Return the token ids of some rows, `int32`; rows without ids give nothing."""
        return [self._checked(row) for row in values if row is not None and len(row)]

    @cached_property
    def _end(self) -> np.ndarray:
        return np.asarray([self.eos_token_id], dtype=np.int32)

    def _checked(self, row: Any) -> np.ndarray:
        ids = np.asarray(row)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"a row of the column {self.column!r} holds no list of token ids: {str(row)[:80]}")
        if self.block_size is not None and len(ids) != self.block_size:
            raise DataError(
                f"a row of the column {self.column!r} has {len(ids)} token ids, block_size is {self.block_size}; set "
                "block_size to the length of the rows, or packed: false, which packs them anew"
            )
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise VocabularyError(
                f"the column {self.column!r} has token ids from {ids.min()} to {ids.max()} in a row, the vocabulary "
                f"has {self.vocab_size} entries; use text that the model's own tokenizer encoded"
            )
        ids = ids.astype(np.int32)
        return ids if self.eos_token_id in (None, ids[-1]) else np.concatenate([ids, self._end])


Encoder = TextEncoder | TokenEncoder
