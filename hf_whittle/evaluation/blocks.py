"""Evaluation of models on fixed blocks of tokens: checks of the blocks, and cross-entropy on them."""

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import DataError, VocabularyError
from ..models.evaluating import evaluating
from ..models.heads import Head, default_chunk_size, head_of, in_place_of, known_output_layer
from ..models.placement import input_device, is_sharded
from ..progress import progress_bar
from .batches import divided, tokens_for
from .windows import Windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def perplexity(loss: float) -> float:
    """Perplexity of a cross-entropy in nats per token; finite for any finite loss."""
    return math.exp(min(loss, 700.0))


def cross_entropy(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    batch_size: int | None = None,
    *,
    is_spread: bool = False,
    progress: str | None = None,
) -> float:
    """Mean cross-entropy of next-token prediction.

    Args:
        model (`PreTrainedModel`): a causal language model, run in evaluation mode and left as it was.
        input_ids (`torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*): blocks evaluated at a time; see `sums_of_blocks`.
        is_spread (`bool`, *optional*, defaults to `False`): whether all processes call this with the same model and
            divide the batches among them, as they do in any case if it is sharded.
        progress (`str`, *optional*): name of a progress bar; there is none without it.

    Returns:
        `float`: nats per predicted token.
    """

    def loss(block: int, first: int, logits: torch.Tensor) -> torch.Tensor:
        labels = input_ids[block, first + 1 : first + 1 + len(logits)].to(logits.device)
        return F.cross_entropy(logits[: len(labels)], labels, reduction="sum")

    total = sums_of_blocks(model, input_ids, batch_size, loss, is_spread=is_spread, progress=progress).sum().item()
    return total / (input_ids.shape[0] * (input_ids.shape[1] - 1))


def sums_of_blocks(
    model: "PreTrainedModel",
    input_ids: Any,
    batch_size: int | None,
    value: Callable[[int, int, torch.Tensor], torch.Tensor],
    *,
    is_spread: bool = False,
    progress: str | None = None,
) -> torch.Tensor:
    """Sum of a function of logits over the tokens of each block, `(blocks,)`, in double precision on the CPU.

    Args:
        model (`PreTrainedModel`): a causal language model, run in evaluation mode and left as it was.
        input_ids (`torch.Tensor`): token ids `(blocks, block_size)`, or `Windows`, whose slices are such tensors.
        batch_size (`int`, *optional*): blocks in a batch; by default as many as make 4,096 tokens on a CPU and 16,384
            on another device, and fewer for a model that computes all logits of a batch at once. A batch for which
            memory is too small is halved, unless the model is sharded.
        value (`Callable`): a function of a block's number, the position of a token in it and the logits of this and the
            next tokens, `(tokens, vocabulary)`, in single precision. It gives the sum over these tokens.
        is_spread (`bool`, *optional*, defaults to `False`): whether processes take the batches in turn, as they do in
            any case if the model is sharded; all get the sums of all.
        progress (`str`, *optional*): label of a progress bar.
    """
    batches = _batches(model, input_ids, batch_size)
    is_spread = (
        torch.distributed.is_available() and torch.distributed.is_initialized() and (is_spread or is_sharded(model))
    )
    processes, own = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if is_spread else (1, 0)
    sums, most = [], max(map(len, batches))
    with evaluating(model):
        rounds = range(0, len(batches), processes)
        for turn in progress_bar(rounds, progress or "", unit="batch", disable=progress is None or own > 0):
            batch = batches[min(turn + own, len(batches) - 1)]  # the last may run again, since all processes must run
            of_batch = _sums_of_batch(model, input_ids[batch.start : batch.stop], batch.start, value)
            sums.append(F.pad(of_batch, (0, most - len(of_batch))))
    if is_spread:
        from accelerate.utils import gather

        sums = list(gather(torch.stack(sums)).unflatten(0, (processes, -1)).transpose(0, 1).flatten(0, 1).unbind())
    return torch.cat([each[: len(batch)] for each, batch in zip(sums, batches, strict=False)]).cpu().double()


def _batches(model: "PreTrainedModel", input_ids: Any, batch_size: int | None) -> list[range]:
    """Numbers of the blocks of each batch."""
    blocks = len(input_ids)
    if batch_size is None:
        lengths = input_ids.lengths if isinstance(input_ids, Windows) else [input_ids.shape[1]] * blocks
        return divided(lengths, tokens_for(model))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return [range(start, min(start + batch_size, blocks)) for start in range(0, blocks, batch_size)]


def _sums_of_batch(
    model: "PreTrainedModel",
    batch: torch.Tensor,
    start: int,
    value: Callable[[int, int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sums of the blocks of a batch, `start` the number of its first; in halves if the whole does not fit."""
    sums: dict[int, Any] = dict.fromkeys(range(len(batch)), 0)

    def add(block: int, first: int, logits: torch.Tensor) -> None:
        part = value(start + block, first, logits)
        sums[block] += part if part.device.type == "mps" else part.double()  # mps has no double precision

    try:
        read_logits(model, batch, add)
        return torch.stack(list(sums.values()))
    except torch.OutOfMemoryError:
        if len(batch) == 1 or is_sharded(model):  # whose other processes run the whole batch
            raise
    half = len(batch) // 2  # outside of the error, which keeps tensors
    warnings.warn(
        f"{len(batch)} blocks do not fit into memory and are evaluated in halves; give batch_size: {half}", stacklevel=2
    )
    parts = ((batch[:half], start), (batch[half:], start + half))
    return torch.cat([_sums_of_batch(model, part, first, value) for part, first in parts])


@torch.no_grad()
def read_logits(model: "PreTrainedModel", batch: torch.Tensor, read: Callable[[int, int, torch.Tensor], None]) -> None:
    """Run a model on a batch and show its logits to a function, those of some tokens of a block at a time.

    They are computed chunk by chunk inside the model's forward. Only a model without a known output layer
    (`known_output_layer`) computes all logits of the batch at once.

    Args:
        model (`PreTrainedModel`): a causal language model, run in the mode that it is in.
        batch (`torch.Tensor`): token ids `(blocks, block_size)`.
        read (`Callable`): called with a block's number in the batch, the position of a token in it and the logits of
            this and the next tokens, `(tokens, vocabulary)`, in single precision.
    """
    layer = known_output_layer(model)

    def show(outputs: torch.Tensor, head: Head | None) -> None:
        size = default_chunk_size(outputs.device.type == "cpu")
        for block, of_block in enumerate(outputs):
            for first in range(0, len(of_block), size):
                chunk = of_block[first : first + size]
                read(block, first, (chunk if head is None else head.logits(chunk)).float())

    def run() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=batch.to(input_device(model)), use_cache=False).logits
        return logits

    if layer is None:
        show(run(), None)
        return

    def in_head(states: torch.Tensor) -> torch.Tensor:
        show(states, head_of(layer))
        return states[..., :1]  # which nobody reads

    with in_place_of(layer, in_head):
        run()


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
