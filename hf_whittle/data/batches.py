"""Stack packed blocks into batches; check which columns are read and which tokens count."""

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import DataError

READ_COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")
_MASKS = ("completion_mask", "assistant_masks", "loss_mask")  # masks of other libraries, for tokens that count


def check_columns(*datasets: Any) -> None:
    """Raise `DataError` if datasets mask tokens by a column that no collator reads."""
    for dataset in datasets:
        for each in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
            found = [name for name in _MASKS if name in (getattr(each, "column_names", None) or ())]
            if found:
                raise DataError(
                    f"the column {found[0]!r} would not be read: mask tokens by a column 'labels' with -100 for "
                    "each, or remove the column"
                )


def items_that_count(number: Any, is_training: bool) -> Any:
    """Return the divisor of a summed loss: the number of labels that count, at least 1.

    Raises:
        DataError: if no label counts in an evaluation, whose loss would be undefined.
    """
    if number is None:
        return None
    if not is_training and not bool((torch.as_tensor(number) > 0).all()):
        raise DataError("no label of a batch counts in the evaluation; leave out blocks whose labels are all -100")
    return torch.as_tensor(number).clamp(min=1)


def collate_blocks(blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack blocks of one length into a batch.

    `labels`, `attention_mask` and `position_ids` of the blocks are kept. Missing labels are the inputs, end-of-text
    tokens included, and -100 where the mask is 0. A mask without zeros is dropped, unless there are positions.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `labels` and the other given columns, `int64`, `(batch, block_size)`.

    Raises:
        DataError: if the blocks differ in length, or have a column that is not read.
    """
    names = list(dict.fromkeys(name for block in blocks for name in block))
    batch = {name: _stack(name, blocks) for name in names if name in (*READ_COLUMNS, "token_type_ids")}
    if "token_type_ids" in batch and not batch["token_type_ids"].any():  # tokenizers add them unasked
        names.remove("token_type_ids")
    unread = [name for name in names if name not in READ_COLUMNS]
    if unread:
        raise DataError(
            f"blocks have the columns {', '.join(READ_COLUMNS)}, got {', '.join(unread)} too, which would not be read; "
            "remove these columns, or give a data_collator that reads them"
        )
    batch.pop("token_type_ids", None)
    mask = batch.get("attention_mask")
    if "labels" not in batch:
        batch["labels"] = batch["input_ids"].clone()
        if mask is not None:
            batch["labels"][mask == 0] = -100
    if mask is not None and mask.all() and "position_ids" not in batch:
        del batch["attention_mask"]
    return batch


def _stack(name: str, blocks: list[dict[str, Any]]) -> torch.Tensor:
    """Stack a column of blocks, which must be as long as their inputs."""
    try:
        rows = [torch.as_tensor(block[name], dtype=torch.long) for block in blocks]
        lengths = [len(row) for row in rows]
        inputs = [len(block["input_ids"]) for block in blocks]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"every block needs numbers in {name!r}, and a block of this batch has none: {error!r}"
        ) from error
    if lengths != inputs or len(set(inputs)) > 1:
        raise DataError(
            f"{name!r} has {sorted(set(lengths))} entries in blocks of {sorted(set(inputs))} tokens; pack the text "
            "into blocks of one length with pack_documents, or give a data_collator that pads"
        )
    return torch.stack(rows)


class DocumentCollator:
    """Stack packed blocks so that no document attends to another: positions restart after each end-of-text token.

    `transformers` masks attention between stretches of positions. The label of a document's first token does not
    count, since another document precedes it.

    Args:
        eos_token_id (`int`): token after each document.

    Raises:
        DataError: as `collate_blocks`, and if the blocks have positions or a mask.
    """

    def __init__(self, eos_token_id: int):
        self.eos_token_id = eos_token_id

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, `int64`, `(batch, block_size)`."""
        batch = collate_blocks(blocks)
        given = [name for name in ("attention_mask", "position_ids") if name in batch]
        if given:
            raise DataError(
                f"DocumentCollator makes positions and masks of its own, and the blocks have {given[0]!r}; remove that "
                "column, or train with collate_blocks"
            )
        ends = batch["input_ids"] == self.eos_token_id
        starts = torch.zeros_like(ends)
        starts[:, 0], starts[:, 1:] = True, ends[:, :-1]
        places = torch.arange(ends.shape[1]).expand_as(batch["input_ids"])
        batch["labels"] = batch["labels"].masked_fill(starts, -100)
        batch["position_ids"] = places - torch.where(starts, places, 0).cummax(dim=1).values
        return batch
