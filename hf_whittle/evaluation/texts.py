"""Perplexity, bits per byte and word perplexity of a model on texts, by three protocols."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import DataError, VocabularyError
from .blocks import perplexity, sums_of_blocks
from .windows import IGNORED, Windows, rolling_windows, whole_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 2048
"""Most tokens of a window by default."""
_TEXTS = 256  # tokenized at a time


@dataclass(frozen=True)
class Measured:
    """A measurement on texts.

    Perplexity is that of a token, so it depends on the tokenizer; the other figures do not. They count the tokens of
    the whole text at the mean loss of those that were predicted.

    Args:
        protocol (`str`): one of `PROTOCOLS`.
        block_size (`int`): most tokens of a window.
        documents (`int`): number of texts.
        nats (`float`): cross-entropy of all predicted tokens.
        predicted (`int`): number of predicted tokens.
        tokens (`int`): tokens of the texts.
        words (`int`): their words, as `count_words` counts them.
        bytes (`int`): their bytes in UTF-8.
        of_documents (`tuple[tuple[float, int], ...]`): cross-entropy and number of predicted tokens of each text, if
            they were predicted one by one.
    """

    protocol: str
    block_size: int
    documents: int
    nats: float
    predicted: int
    tokens: int
    words: int
    bytes: int
    of_documents: tuple[tuple[float, int], ...] = ()

    @property
    def perplexity(self) -> float:
        """Perplexity of a token."""
        return perplexity(self.nats / self.predicted)

    @property
    def perplexities(self) -> list[float]:
        """Perplexity of each text; NaN for one without tokens."""
        return [perplexity(nats / predicted) if predicted else math.nan for nats, predicted in self.of_documents]

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of the texts."""
        return self._of_whole / self.bytes / math.log(2)

    @property
    def byte_perplexity(self) -> float:
        """Perplexity of a byte."""
        return perplexity(self._of_whole / self.bytes)

    @property
    def word_perplexity(self) -> float:
        """Perplexity of a word."""
        return perplexity(self._of_whole / self.words)

    @property
    def _of_whole(self) -> float:
        """Cross-entropy of all tokens of the texts."""
        return self.nats / self.predicted * self.tokens


def some_texts(texts: Iterable[str]) -> list[str]:
    """Those texts that are not empty.

    Raises:
        DataError: if there are none, or the texts are one string.
    """
    if isinstance(texts, str):
        raise DataError("the texts are one string, each character of which would be a text; give a list of texts")
    found = [text for text in texts if text]
    if not found:
        raise DataError("there is no text to evaluate on: every document is empty")
    return found


def count_words(text: str) -> int:
    """Number of words of a text as lm-evaluation-harness counts them: parts that white space separates."""
    return len(re.split(r"\s+", text))


def count_bytes(text: str) -> int:
    """Number of bytes of a text in UTF-8."""
    return len(text.encode("utf-8", errors="replace"))


def encode_texts(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool | None = None
) -> Iterator[list[int]]:
    """Token ids of texts, each by itself.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        texts (`Sequence[str]`): the texts.
        add_special_tokens (`bool`, *optional*): whether to add the tokenizer's special tokens. By default it does as it
            is set up to, unless a text begins with its beginning-of-text token, as in lm-evaluation-harness.
    """
    for start in range(0, len(texts), _TEXTS):
        some = list(texts[start : start + _TEXTS])
        if add_special_tokens is not None:
            yield from tokenizer(some, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
            continue
        first = tokenizer.decode(prefix_token(tokenizer))
        encoded = tokenizer(some, verbose=False)["input_ids"]
        for text, ids in zip(some, encoded, strict=True):
            yield (
                tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text.startswith(first) else ids
            )


def prefix_token(tokenizer: Any) -> int:
    """The token that stands before a text: that of its beginning or, without one, of its end.

    Raises:
        DataError: if the tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise DataError("the tokenizer has no token to begin a text with; set tokenizer.bos_token or its eos_token")
    return found


def measure_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    *,
    protocol: str = "documents",
    block_size: int | None = None,
    batch_size: int | None = None,
    add_special_tokens: bool | None = None,
    is_spread: bool = False,
    progress: str | None = None,
) -> Measured:
    """Measure a model on texts.

    Args:
        model (`PreTrainedModel`): a causal language model, a super-network with a subnet active, or one with adapters.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        texts (`Iterable[str]`): the texts; empty ones are left out.
        protocol (`str`, *optional*, defaults to `"documents"`): `"documents"` predicts every token of each text, after
            a beginning-of-text token, as lm-evaluation-harness does; `"text"` joins all texts by blank lines and cuts
            them into windows of `block_size`, as papers do with WikiText; `"packed"` puts an end-of-text token after
            each and cuts them likewise, as for training.
        block_size (`int`, *optional*): most tokens of a window; the positions of the model, `LONGEST` at most, by
            default.
        batch_size (`int`, *optional*): windows in a batch; see `sums_of_blocks`.
        add_special_tokens (`bool`, *optional*): whether the tokenizer adds its special tokens to documents; as it is
            set up to by default, which lm-evaluation-harness does.
        is_spread (`bool`, *optional*, defaults to `False`): whether all processes call this with the same arguments,
            and divide the batches among them.
        progress (`str`, *optional*): label of a progress bar.

    Raises:
        DataError: if there is no text or less than a window, the texts are one string, the protocol is unknown, or a
            window does not fit into the model's positions.
        VocabularyError: if the tokenizer has tokens that the model has not.
    """
    config: Any = model.config
    size = checked_block_size(config, block_size)
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    found = some_texts(texts)
    windows, tokens = PROTOCOLS[protocol](tokenizer, found, size, add_special_tokens)
    nats = window_losses(model, windows, batch_size, is_spread=is_spread, progress=progress)
    is_by_document = protocol == "documents"
    return Measured(
        protocol=protocol,
        block_size=size,
        documents=len(found),
        nats=math.fsum(nats),
        predicted=sum(windows.num_targets),
        tokens=tokens,
        words=sum(map(count_words, found)),
        bytes=sum(map(count_bytes, found)),
        of_documents=by_document(windows, nats, len(found)) if is_by_document else (),
    )


def checked_block_size(config: Any, block_size: int | None) -> int:
    """Tokens of a window: those given, or the positions of a model, `LONGEST` at most.

    Raises:
        DataError: if the model has fewer positions, or a window of them predicts nothing.
    """
    longest = getattr(config, "max_position_embeddings", None) or LONGEST
    if block_size is None:
        return min(longest, LONGEST)
    if not 2 <= block_size <= longest:
        raise DataError(f"the block size must be 2 to {longest}, the positions of the model, got {block_size}")
    return block_size


def window_losses(
    model: Any, windows: Windows, batch_size: int | None = None, *, is_spread: bool = False, progress: str | None = None
) -> list[float]:
    """Cross-entropy of the tokens that are predicted in each window, in nats.

    Raises:
        VocabularyError: if a token is not in the model's vocabulary.
    """
    vocabulary = model.config.vocab_size
    first, last = windows.id_range
    if first < 0 or last >= vocabulary:
        raise VocabularyError(
            f"the text has token ids from {first} to {last}, the model's vocabulary has {vocabulary} entries; give the "
            "model's own tokenizer"
        )

    def loss(window: int, first: int, logits: torch.Tensor) -> torch.Tensor:
        targets = windows.targets(slice(window, window + 1))[0, first : first + len(logits)].to(logits.device)
        return F.cross_entropy(logits[: len(targets)], targets, ignore_index=IGNORED, reduction="sum")

    sums = sums_of_blocks(model, windows, batch_size, loss, is_spread=is_spread, progress=progress)
    found: list[float] = sums.tolist()
    return found


def by_document(windows: Windows, nats: list[float], documents: int) -> tuple[tuple[float, int], ...]:
    """Cross-entropy and number of predicted tokens of each document."""
    sums, numbers = [0.0] * documents, [0] * documents
    for document, loss, number in zip(windows.documents, nats, windows.num_targets, strict=True):
        sums[document] += loss
        numbers[document] += number
    return tuple(zip(sums, numbers, strict=True))


def _documents(tokenizer: Any, texts: list[str], size: int, special: bool | None) -> tuple[Windows, int]:
    prefix = prefix_token(tokenizer)
    encoded = list(encode_texts(tokenizer, texts, add_special_tokens=special))
    windows = (each for number, ids in enumerate(encoded) for each in rolling_windows(ids, size, prefix, number))
    return Windows(windows), sum(map(len, encoded))


def _text(tokenizer: Any, texts: list[str], size: int, special: bool | None) -> tuple[Windows, int]:
    options = {} if special is None else {"add_special_tokens": special}
    ids = tokenizer("\n\n".join(texts), verbose=False, **options)["input_ids"]
    return _whole(np.asarray(ids, dtype=np.int32), size)


def _packed(tokenizer: Any, texts: list[str], size: int, special: bool | None) -> tuple[Windows, int]:
    from ..data.encoding import TextEncoder  # imports datasets

    encoder = TextEncoder(tokenizer)
    parts = [ids for start in range(0, len(texts), _TEXTS) for ids in encoder(texts[start : start + _TEXTS])]
    return _whole(np.concatenate(parts), size)


def _whole(ids: np.ndarray, size: int) -> tuple[Windows, int]:
    if len(ids) < size:
        raise DataError(
            f"the text has {len(ids)} tokens, less than one window of {size}; give more text, or a smaller block size"
        )
    return Windows(whole_windows(ids, size)), len(ids)


PROTOCOLS: dict[str, Callable[[Any, list[str], int, bool | None], tuple[Windows, int]]] = {
    "documents": _documents,
    "text": _text,
    "packed": _packed,
}
"""How texts are cut: functions of tokenizer, texts and size of a window that give windows and number of tokens."""
