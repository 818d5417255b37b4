"""Divergence of a subnet from a teacher on fixed tokens."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..cost.models import forward_flops_per_token
from ..errors import VocabularyError
from ..evaluation import evaluating, read_logits, sums_of_blocks
from ..evaluation.batches import batches_fit, blocks_for
from ..fingerprints import model_fingerprint
from ..models.weights import check_no_subnet
from ..subnet import SubnetConfig
from .base import TokenFitness

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel


class KLDivergence(TokenFitness):
    """Mean KL divergence, in nats per token, of a subnet's predictions from a teacher's on fixed tokens.

    The teacher's log-probabilities are computed once and kept in half precision: 2 bytes for each token and entry of
    the vocabulary.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*): blocks evaluated at a time; by default 4,096 tokens on a CPU, 16,384 on another
            device.
        teacher (`PreTrainedModel`, *optional*): model with the same vocabulary; the full super-network by default.

    Raises:
        VocabularyError: if the teacher's vocabulary has another size.
        SubnetError: if a subnet is active in the teacher.
    """

    name = "kl"
    may_be_offloaded = True

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        batch_size: int | None = None,
        teacher: "PreTrainedModel | None" = None,
    ):
        super().__init__(supernet, blocks, batch_size)
        teacher = teacher or supernet
        check_no_subnet(teacher)
        if teacher.config.vocab_size != supernet.config.vocab_size:
            raise VocabularyError(
                f"the teacher's vocabulary has {teacher.config.vocab_size} entries, that of the super-network "
                f"{supernet.config.vocab_size}; use a teacher with the same vocabulary"
            )
        self._teacher = model_fingerprint(teacher)
        self._teacher_flops = forward_flops_per_token(teacher, self.input_ids.shape[1])
        at_a_time = batch_size or blocks_for(teacher, self.input_ids.shape[1])
        with evaluating(teacher), batches_fit(at_a_time):
            self._targets = [
                of_block for batch in self.input_ids.split(at_a_time) for of_block in _in_half(teacher, batch)
            ]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        rows = self.rows(share)
        targets = [self._targets[row] for row in rows]

        def divergence(block: int, first: int, logits: torch.Tensor) -> torch.Tensor:
            target = targets[block][first : first + len(logits)].to(logits.device).float()
            return F.kl_div(logits.log_softmax(-1), target, reduction="sum", log_target=True)

        with self.supernet.active_subnet(subnet):
            total = sums_of_blocks(self.supernet, self.input_ids[rows], self.batch_size, divergence).sum().item()
        return total / (len(rows) * self.input_ids.shape[1])

    @property
    def preparation(self) -> dict[str, int]:
        return {"tokens": self.tokens(), "flops": self.tokens() * self._teacher_flops}

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "teacher": self._teacher}


def _in_half(teacher: Any, batch: torch.Tensor) -> list[torch.Tensor]:
    """Log-probabilities of each block in half precision, clamped to its range, below which probabilities are 0."""
    parts: list[list[torch.Tensor]] = [[] for _ in batch]

    def keep(block: int, first: int, logits: torch.Tensor) -> None:
        parts[block].append(logits.log_softmax(-1).clamp(min=-6e4).half().cpu())

    read_logits(teacher, batch, keep)
    return list(map(torch.cat, parts))
