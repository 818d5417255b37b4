"""Evaluation of models on fixed blocks of tokens: checks of the blocks, and cross-entropy on them."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..compat import without_packing
from ..errors import DataError, VocabularyError
from ..models.placement import input_device, is_sharded
from ..progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def perplexity(loss: float) -> float:
    """Perplexity of a cross-entropy in nats per token; finite for any finite loss."""
    return math.exp(min(loss, 700.0))


def cross_entropy(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    batch_size: int = 16,
    *,
    is_spread: bool = False,
    progress: str | None = None,
) -> float:
    """Mean cross-entropy of next-token prediction.

    Args:
        model (`PreTrainedModel`): a causal language model, run in evaluation mode and left as it was.
        input_ids (`torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.
        is_spread (`bool`, *optional*, defaults to `False`): whether all processes call this with the same model and
            divide the batches among them, as they do in any case if it is sharded.
        progress (`str`, *optional*): name of a progress bar; there is none without it.

    Returns:
        `float`: nats per predicted token.
    """

    def loss(start: int, logits: torch.Tensor) -> torch.Tensor:
        labels = input_ids[start : start + len(logits), 1:].to(logits.device)
        return sum_over_blocks(lambda one, own: F.cross_entropy(one[:-1].float(), own, reduction="sum"), logits, labels)

    total = sum_over_batches(model, input_ids, batch_size, loss, is_spread=is_spread, progress=progress)
    return total / (input_ids.shape[0] * (input_ids.shape[1] - 1))


def sum_over_batches(
    model: "PreTrainedModel",
    input_ids: Any,
    batch_size: int,
    value: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    is_spread: bool = False,
    progress: str | None = None,
) -> float:
    """Sum of `value(first_block, logits)` over the batches, in their order.

    If `is_spread`, and for a sharded model, processes take the batches in turn, and all get the same sum.
    """
    values = over_batches(model, input_ids, batch_size, value, is_spread=is_spread, progress=progress)
    return sum(values, torch.zeros((), dtype=torch.float64)).item()


def over_batches(
    model: "PreTrainedModel",
    input_ids: Any,
    batch_size: int,
    value: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    is_spread: bool = False,
    progress: str | None = None,
) -> list[torch.Tensor]:
    """`value(first_block, logits)` of each batch, in their order, in double precision on the CPU.

    Args:
        model (`PreTrainedModel`): a causal language model, run in evaluation mode and left as it was.
        input_ids (`torch.Tensor`): token ids `(blocks, block_size)`, or a sequence whose slices are such tensors.
        batch_size (`int`): blocks in a batch.
        value (`Callable`): a function of the first block's number and the logits `(batch, block_size, vocabulary)`. Its
            values have the same shape for all batches.
        is_spread (`bool`, *optional*, defaults to `False`): whether processes take the batches in turn, as they do in
            any case if the model is sharded; all get the values of all.
        progress (`str`, *optional*): label of a progress bar.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(0, len(input_ids), batch_size)
    is_spread = (
        torch.distributed.is_available() and torch.distributed.is_initialized() and (is_spread or is_sharded(model))
    )
    processes, own = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if is_spread else (1, 0)
    values = []
    with evaluating(model):
        rounds = range(0, len(starts), processes)
        for first in progress_bar(rounds, progress or "", unit="batch", disable=progress is None or own > 0):
            start = starts[min(first + own, len(starts) - 1)]  # the last may be run again, since all processes must run
            logits = next_token_logits(model, input_ids[start : start + batch_size])
            values.append(value(start, logits))
    if is_spread:
        from accelerate.utils import gather

        of_turns = gather(torch.stack(values)).unflatten(0, (processes, -1)).transpose(0, 1)
        values = list(of_turns.flatten(0, 1)[: len(starts)].unbind())
    return [one.cpu().double() for one in values]


def sum_over_blocks(value: Callable[..., torch.Tensor], *tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of `value` over the blocks of tensors, one at a time, so that no copy of all logits is made."""
    return values_of_blocks(value, *tensors).sum()


def values_of_blocks(value: Callable[..., torch.Tensor], *tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """`value` of each block of tensors, one at a time, in double precision where the device has it."""
    values = torch.stack([value(*of_block) for of_block in zip(*tensors, strict=True)])
    return values if values.device.type == "mps" else values.double()  # mps has no double precision


@torch.no_grad()
def next_token_logits(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    return model(input_ids=batch.to(input_device(model)), use_cache=False).logits


@contextlib.contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model in evaluation mode inside the block, and every module back in its own mode after it.

    Inside the block, bitsandbytes leaves 4-bit weights as they are, which it would otherwise pack with rounding.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with without_packing(model):
            yield
    finally:
        for module in training:
            module.training = True


def as_input_ids(blocks: "Dataset | torch.Tensor", vocab_size: int, *, ignore_labels: bool = False) -> torch.Tensor:
    """Blocks as one `int64` tensor `(blocks, block_size)`, checked against a vocabulary.

    Args:
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids without padding.
        vocab_size (`int`): entries of the vocabulary.
        ignore_labels (`bool`, *optional*, defaults to `False`): whether to accept any column `labels`.

    Raises:
        DataError: if there are no blocks, their lengths differ, or a column masks tokens.
        VocabularyError: if an id is not in the vocabulary.
    """
    if isinstance(blocks, torch.Tensor):
        input_ids = blocks
    else:
        if blocks is not None and not (hasattr(blocks, "with_format") and hasattr(blocks, "__len__")):
            raise DataError(f"expected a datasets.Dataset or a tensor of token ids, got a {type(blocks).__name__}")
        if blocks is None or len(blocks) == 0:
            raise DataError("there are no blocks of text to evaluate on; give a dataset of packed tokens")
        input_ids = _column(blocks, "input_ids")
        _check_unmasked(blocks, input_ids, ignore_labels)
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < 2:
        raise DataError(
            f"expected token ids of shape (blocks, block_size), got {tuple(input_ids.shape)}; give at least one block "
            "of 2 tokens or more"
        )
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise VocabularyError(
            f"the text has token ids from {input_ids.min()} to {input_ids.max()}, the model's vocabulary has "
            f"{vocab_size} entries; tokenize with the model's own tokenizer"
        )
    return input_ids.long().cpu()


def _column(blocks: "Dataset", name: str) -> torch.Tensor:
    if name not in blocks.column_names:
        raise DataError(f"the blocks have no column {name!r}, only {blocks.column_names}; use pack_documents")
    try:
        return torch.from_numpy(np.asarray(blocks.select_columns(name).with_format("numpy")[:][name], dtype=np.int64))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the blocks are not all of the same length in {name!r}; pack the text without padding"
        ) from error


def _check_unmasked(blocks: "Dataset", input_ids: torch.Tensor, ignore_labels: bool) -> None:
    """Raise `DataError` if a column masks tokens, or moves or relabels them."""
    if input_ids.ndim != 2:
        return
    plain = {"attention_mask": torch.ones_like(input_ids), "position_ids": torch.arange(input_ids.shape[1])}
    if not ignore_labels:
        plain["labels"] = input_ids
    for name in sorted(plain.keys() & set(blocks.column_names)):
        given = _column(blocks, name)
        if given.shape != input_ids.shape or not bool((given == plain[name])[:, 1:].all()):
            raise DataError(
                f"the column {name!r} masks, moves or relabels tokens, and every token is evaluated as it stands; "
                "remove the column, or give blocks without such tokens"
            )
