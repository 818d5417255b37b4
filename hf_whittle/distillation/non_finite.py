"""Diagnosis of a loss that is NaN or Inf: its cause, the rows of the batch, and the checkpoint to go on from."""

from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..models.weights import local_part
from ..training.checkpoints import whole_checkpoints


def first_non_finite_weight(model: nn.Module) -> str | None:
    """Name of the first parameter that contains NaN or Inf, as far as this process holds it."""
    own = ((name, local_part(parameter)) for name, parameter in model.named_parameters())
    return next((name for name, value in own if not value.isfinite().all()), None)


def loss_without_gradient(loss: torch.Tensor, weights: list[nn.Parameter]) -> torch.Tensor:
    """Make a loss of 0 in which every trainable weight has gradient 0, as other processes wait for its gradient."""
    return sum(((weight * 0).sum() for weight in weights if weight.requires_grad), torch.zeros_like(loss))


def describe_batch(input_ids: torch.Tensor, dataset: Any, tokenizer: Any) -> str:
    """Name the rows of the training set in a batch, or quote the start of its blocks if they are not found."""
    blocks = [tuple(block) for block in input_ids.tolist()]
    rows = _rows(blocks, dataset)
    if rows is not None:
        return f"the batch is rows {rows} of train_dataset"
    starts: list[Any] = [list(block[:8]) for block in blocks]
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        starts = [tokenizer.decode(start) for start in starts]
    return f"the blocks of the batch begin with {starts}"


def _rows(blocks: list[tuple[int, ...]], dataset: Any) -> list[int] | None:
    """Row of each block in a dataset with random access; `None` unless all are found."""
    rows: dict[tuple[int, ...], int] = {}
    for number, row in enumerate(dataset if isinstance(dataset, (Dataset, list)) else ()):
        block = tuple(torch.as_tensor(row["input_ids"]).tolist()) if "input_ids" in row else ()
        if block in blocks:
            rows.setdefault(block, number)
            if len(rows) == len(set(blocks)):
                return [rows[block] for block in blocks]
    return None


def advise(folder: str, can_skip: bool) -> str:
    """Say where to go on from after the error, and with which settings."""
    last = _last_good_checkpoint(folder)
    start = f"Go on from the last good checkpoint, {last}," if last else f"Restart, as {folder} has no good checkpoint,"
    return f"{start} with a lower learning rate" + (", or with non_finite_loss='skip'" if can_skip else "")


def _last_good_checkpoint(folder: str) -> str | None:
    """The newest checkpoint without NaN or Inf in its weights."""
    for checkpoint in whole_checkpoints(folder):
        files = list(checkpoint.glob("*.safetensors"))
        if files and all(value.isfinite().all() for file in files for value in load_file(file).values()):
            return str(checkpoint)
    return None
