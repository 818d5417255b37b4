"""Perplexity of a subnet on fixed tokens: what the paper's search minimises."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from .errors import DataError, VocabularyError
from .subnet import SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from .models.supernet import SuperNetModel


class Perplexity:
    """Perplexity of a super-network's subnets on the same tokens, in the same order, for every subnet.

    Args:
        supernet (`PreTrainedModel`): a model with `active_subnet`.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.

    Raises:
        DataError: if there are no blocks.
        VocabularyError: if a token id is outside the model's vocabulary.
    """

    def __init__(self, supernet: "SuperNetModel", blocks: "Dataset | torch.Tensor", batch_size: int = 16):
        self.supernet = supernet
        self.input_ids = as_input_ids(blocks, supernet.config.vocab_size)
        self.batch_size = batch_size

    def __call__(self, subnet: SubnetConfig) -> float:
        with self.supernet.active_subnet(subnet):
            return perplexity(cross_entropy(self.supernet, self.input_ids, self.batch_size))

    @property
    def tokens(self) -> int:
        """Tokens read for one evaluation."""
        return self.input_ids.numel()

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for two searches to give the same values."""
        return {
            "name": "perplexity",
            "tokens": self.tokens,
            "block_size": self.input_ids.shape[1],
            "data": fingerprint(self.input_ids),
            "model": model_fingerprint(self.supernet),
        }


def perplexity(loss: float) -> float:
    """Perplexity of a cross-entropy in nats per token; finite for any finite loss."""
    return math.exp(min(loss, 700.0))


def cross_entropy(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int = 16) -> float:
    """Mean cross-entropy of next-token prediction.

    Args:
        model (`PreTrainedModel`): a causal language model; its training mode is restored.
        input_ids (`torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.

    Returns:
        `float`: nats per predicted token.
    """
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(model), torch.inference_mode():
        for rows in torch.split(input_ids, batch_size):
            batch = rows.to(model.device)
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum")
            total += loss.double().cpu()
    return total.item() / (input_ids.shape[0] * (input_ids.shape[1] - 1))


@contextlib.contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model in evaluation mode inside the block; after it, every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_input_ids(blocks: "Dataset | torch.Tensor", vocab_size: int) -> torch.Tensor:
    """Blocks as one `int64` tensor `(blocks, block_size)`, checked against a vocabulary."""
    if isinstance(blocks, torch.Tensor):
        input_ids = blocks
    else:
        if blocks is None or len(blocks) == 0:
            raise DataError("there are no blocks of text to evaluate on; give a dataset of packed tokens")
        if not hasattr(blocks, "with_format"):
            raise DataError(f"expected a datasets.Dataset or a tensor of token ids, got a {type(blocks).__name__}")
        input_ids = torch.from_numpy(np.asarray(blocks.with_format("numpy")[:]["input_ids"], dtype=np.int64))
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < 2:
        raise DataError(f"expected token ids of shape (blocks, block_size), got {tuple(input_ids.shape)}")
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise VocabularyError(
            f"the text has token ids from {input_ids.min()} to {input_ids.max()}, the model's vocabulary has "
            f"{vocab_size} entries; tokenize with the model's own tokenizer"
        )
    return input_ids.long().cpu()


def fingerprint(input_ids: torch.Tensor) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(input_ids.numpy().tobytes()).hexdigest()[:16]


_NOT_FINGERPRINTED = {"_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "use_cache"}


def model_fingerprint(model: "PreTrainedModel") -> str:
    """A short hash of a model: its configuration and its parameters."""
    config = getattr(model, "full_config", model.config).to_diff_dict()
    told = {name: value for name, value in config.items() if name not in _NOT_FINGERPRINTED}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8)
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{parameter.dtype}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
