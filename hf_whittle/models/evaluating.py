"""A model in evaluation mode for a while."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..compat.others import without_packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
