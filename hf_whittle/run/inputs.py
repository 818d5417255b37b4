"""Inputs of a run."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import CheckpointError


def load_tokenizer(name: str, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: if it has none.
    """
    tokenizer = _load(AutoTokenizer.from_pretrained, name, **hub)
    if not tokenizer("text").input_ids:
        raise CheckpointError(f"the checkpoint {name!r} has no tokenizer: put the tokenizer's files beside it")
    return tokenizer


def _load(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Load a checkpoint, with an error that names it."""
    try:
        return load(name, **kwargs)
    except OSError as error:
        raise CheckpointError(f"cannot load the checkpoint {name!r}: {' '.join(str(error).split())}") from error


def _spread(blocks: Dataset, number: int) -> Dataset:
    """At most `number` blocks, evenly over the whole split."""
    if len(blocks) <= number:
        return blocks
    return blocks.select([i * len(blocks) // number for i in range(number)])
