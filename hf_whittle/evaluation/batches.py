"""Batches of forward passes: how many blocks are run at a time, where nobody chooses, and what does not fit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import WhittleError
from ..models.heads import known_output_layer
from ..models.placement import input_device

ON_CPU, ON_ACCELERATOR = 4096, 16384
"""Tokens of a batch by default. On a CPU, larger ones are no faster, by the benchmark `batches`."""
LOGITS = 2**28
"""Most logits of a batch by default, if a model computes them all at once: a gigabyte in single precision."""


def tokens_at_a_time(on_cpu: bool, vocabulary: int = 0) -> int:
    """Tokens of a batch by default.

    They depend on the kind of the device, not on what is free there, so that a search that is resumed runs the batches
    that it ran before.

    Args:
        on_cpu (`bool`): whether a CPU runs the model.
        vocabulary (`int`, *optional*, defaults to 0): entries of the vocabulary, if the model computes the logits of a
            whole batch at once, and not in chunks (`read_logits`).
    """
    tokens = ON_CPU if on_cpu else ON_ACCELERATOR
    return min(tokens, max(1, LOGITS // vocabulary)) if vocabulary else tokens


def tokens_for(model: Any, in_chunks: bool | None = None) -> int:
    """Tokens that a model runs on at a time by default.

    Args:
        model (`PreTrainedModel`): the model.
        in_chunks (`bool`, *optional*): whether logits of a part of a batch are in memory at a time, or none; by default
            whether `read_logits` computes those of this model so.
    """
    if in_chunks is None:
        in_chunks = known_output_layer(model) is not None
    return tokens_at_a_time(input_device(model).type == "cpu", 0 if in_chunks else model.config.vocab_size)


def blocks_for(model: Any, length: int, in_chunks: bool | None = None) -> int:
    """Blocks of a length that a model runs on at a time by default, at least one; see `tokens_for`."""
    return max(1, tokens_for(model, in_chunks) // length)


def divided(lengths: Sequence[int], tokens: int) -> list[range]:
    """Divide blocks, the longest first, into batches of at most so many tokens once padded, or of one block.

    Args:
        lengths (`Sequence[int]`): tokens of each block.
        tokens (`int`): tokens of a batch.
    """
    batches, first = [], 0
    while first < len(lengths):
        last = min(len(lengths), first + max(1, tokens // lengths[first]))
        batches.append(range(first, last))
        first = last
    return batches


@contextmanager
def batches_fit(batch_size: int) -> Iterator[None]:
    """Say what to set where a device runs out of memory inside the block.

    Args:
        batch_size (`int`): blocks that are run at a time.

    Raises:
        WhittleError: if it does.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = (
            f"give a batch_size of {batch_size // 2} or less" if batch_size > 1 else "one does not; use shorter blocks"
        )
        raise WhittleError(f"{batch_size} blocks at a time do not fit into the device's memory; {advice}") from error
