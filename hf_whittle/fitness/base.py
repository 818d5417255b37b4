"""Interface of fitnesses: functions of a subnet that a search minimizes."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..cost.counts import flops_per_token
from ..evaluation import as_input_ids
from ..fingerprints import fingerprint, model_fingerprint
from ..models.placement import is_sharded
from ..models.weights import check_plain_weights
from ..subnet import SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from ..models.supernet import SuperNetModel


class Fitness(ABC):
    """A function of a subnet that a search minimizes, with the cost of an evaluation."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        """Evaluate a subnet; the lower, the better.

        Args:
            subnet (`SubnetConfig`): the subnet.
            share (`float`, *optional*, defaults to 1.0): share of the tokens to read; a smaller share is part of a
                larger one, so that all subnets are compared on the same tokens.
        """

    @abstractmethod
    def tokens(self, share: float = 1.0) -> int:
        """Tokens read for one evaluation."""

    def tokens_of(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        """Tokens read for one evaluation of a subnet, where that depends on its vocabulary."""
        return self.tokens(share)

    @property
    def reads_token_ids(self) -> bool:
        """Whether all subnets are evaluated on the same token ids, so that they must have the same vocabulary."""
        return False

    @abstractmethod
    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        """FLOPs of one evaluation."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings and data that determine the values of the fitness."""

    @property
    def preparation(self) -> dict[str, int]:
        """One-time cost before the first evaluation: tokens and FLOPs."""
        return {"tokens": 0, "flops": 0}

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the model, so that all must evaluate a candidate together."""
        return False


class TokenFitness(Fitness):
    """A fitness measured on fixed tokens, the same ones in the same order for every subnet.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*): blocks evaluated at a time; by default 4,096 tokens on a CPU, 16,384 on another
            device.

    Raises:
        DataError: if there are no blocks.
        VocabularyError: if a token id is outside the model's vocabulary.
        WeightsError: if the super-network's weights are quantized or adapted, or offloaded where they must not be.
    """

    passes: ClassVar[int] = 1
    """Forward passes of an evaluation; a backward pass counts as two."""
    may_be_offloaded: ClassVar[bool] = False
    """Whether some of the super-network's weights need not be in memory."""

    def __init__(self, supernet: "SuperNetModel", blocks: "Dataset | torch.Tensor", batch_size: int | None = None):
        check_plain_weights(supernet, may_be_offloaded=self.may_be_offloaded)
        self.supernet = supernet
        self.input_ids = as_input_ids(blocks, supernet.config.vocab_size)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._order = torch.randperm(len(self.input_ids), generator=torch.Generator().manual_seed(0))

    def rows(self, share: float) -> torch.Tensor:
        """Ascending indices of the blocks of a share of the tokens, at least one."""
        return self._order[: max(1, round(share * len(self._order)))].sort().values

    def tokens(self, share: float = 1.0) -> int:
        return len(self.rows(share)) * self.input_ids.shape[1]

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.supernet)

    @property
    def reads_token_ids(self) -> bool:
        return True

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        length = self.input_ids.shape[1]
        per_token = flops_per_token(self.supernet.full_config, subnet, sequence_length=length)
        return self.passes * self.tokens(share) * per_token

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.tokens(),
            "block_size": self.input_ids.shape[1],
            "data": fingerprint(self.input_ids),
            "model": model_fingerprint(self.supernet),
        }
