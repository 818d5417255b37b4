"""What a search minimises: perplexity of a subnet on fixed tokens, or its divergence from a teacher."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from .code_fingerprint import fitness_settings
from .cost.counts import flops_per_token
from .errors import VocabularyError
from .evaluation import (
    as_input_ids,
    cross_entropy,
    evaluating,
    is_sharded,
    next_token_logits,
    perplexity,
    sum_over_batches,
)
from .fingerprints import fingerprint, model_fingerprint
from .models.architecture import has_architecture
from .models.weights import check_no_subnet, check_plain_weights
from .subnet import SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from .models.supernet import SuperNetModel


class Fitness(ABC):
    """What a search minimises: a function of a subnet, and what evaluating it costs."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        """The fitness of a subnet; the lower, the better.

        Args:
            subnet (`SubnetConfig`): the subnet.
            share (`float`, *optional*, defaults to 1.0): share of the tokens to read; a smaller share is part of a
                larger one, so that all subnets are compared on the same tokens.
        """

    @abstractmethod
    def tokens(self, share: float = 1.0) -> int:
        """Tokens read for one evaluation."""

    @abstractmethod
    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        """FLOPs of one evaluation."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same for two searches to give the same values."""

    @property
    def preparation(self) -> dict[str, int]:
        """Tokens and FLOPs of what was done once, before the first evaluation."""
        return {"tokens": 0, "flops": 0}

    @property
    def is_sharded(self) -> bool:
        """Whether all processes must evaluate a candidate together, since each holds a part of the model."""
        return False


class StagedFitness(Fitness):
    """A fitness for each share of the tokens: cheap ones weed candidates out, a dear one decides.

    A search that evaluates on shares of the tokens, as multi-fidelity evolution does, compares candidates within a
    share only; here each of its shares is another fitness, on all of that one's tokens. Any other search takes the
    last.

    Args:
        stages (`Mapping[float, Fitness]`): the fitness that stands for each share, ascending to 1.

    Raises:
        ValueError: if the shares do not ascend from above 0 to 1.
    """

    name = "staged"

    def __init__(self, stages: Mapping[float, Fitness]):
        self.stages = dict(stages)
        shares = list(self.stages)
        if not shares or shares != sorted(shares) or shares[0] <= 0 or shares[-1] != 1:
            raise ValueError(f"the shares of stages must ascend from above 0 to 1, got {shares}")

    def _stage(self, share: float) -> Fitness:
        if share not in self.stages:
            raise ValueError(
                f"the search evaluates on a share of {share} of the tokens, the stages are for {list(self.stages)}; "
                "give them the same shares"
            )
        return self.stages[share]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        return self._stage(share)(subnet)

    def tokens(self, share: float = 1.0) -> int:
        return self._stage(share).tokens()

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return self._stage(share).flops(subnet)

    @property
    def preparation(self) -> dict[str, int]:
        """What several stages share, as probes do the healing they start from, is counted once."""
        stages = {id(stage): stage for stage in self.stages.values()}
        found = (getattr(stage, "healing", None) for stage in stages.values())
        shared: list[Fitness] = [healing for healing in found if healing is not None]
        parts = {**stages, **{id(healing): healing for healing in shared}}
        return {
            name: sum(part.preparation[name] for part in parts.values())
            - sum(healing.preparation[name] for healing in shared)
            for name in ("tokens", "flops")
        }

    @property
    def is_sharded(self) -> bool:
        return any(stage.is_sharded for stage in self.stages.values())

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stages": {str(share): fitness_settings(stage) for share, stage in self.stages.items()},
        }


class TokenFitness(Fitness):
    """A fitness measured on a fixed set of tokens: the same ones, in the same order, for every subnet.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.

    Raises:
        DataError: if there are no blocks.
        VocabularyError: if a token id is outside the model's vocabulary.
        WeightsError: if the super-network's weights are quantized, offloaded or adapted.
    """

    passes: ClassVar[int] = 1
    """Forward passes that evaluating costs; a backward pass counts as two."""

    def __init__(self, supernet: "SuperNetModel", blocks: "Dataset | torch.Tensor", batch_size: int = 16):
        check_plain_weights(supernet)
        self.supernet = supernet
        self.input_ids = as_input_ids(blocks, supernet.config.vocab_size)
        self.batch_size = batch_size
        self._order = torch.randperm(len(self.input_ids), generator=torch.Generator().manual_seed(0))

    def rows(self, share: float) -> torch.Tensor:
        """Indices of the blocks that make up a share of the tokens, at least one, ascending."""
        return self._order[: max(1, round(share * len(self._order)))].sort().values

    def tokens(self, share: float = 1.0) -> int:
        return len(self.rows(share)) * self.input_ids.shape[1]

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.supernet)

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


class Perplexity(TokenFitness):
    """Perplexity of a super-network's subnets on fixed tokens: the paper's fitness."""

    name = "perplexity"

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with self.supernet.active_subnet(subnet):
            return perplexity(cross_entropy(self.supernet, self.input_ids[self.rows(share)], self.batch_size))


class KLDivergence(TokenFitness):
    """Mean KL divergence, in nats a token, of a subnet's predictions from those of a teacher on fixed tokens.

    The teacher's log-probabilities are computed once and held in half precision, 2 bytes for each token and entry of
    the vocabulary.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.
        teacher (`PreTrainedModel`, *optional*): with the same vocabulary; the full super-network by default.

    Raises:
        VocabularyError: if the teacher's vocabulary is another.
        SubnetError: if a subnet is active in the teacher.
    """

    name = "kl"

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        batch_size: int = 16,
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
        with evaluating(teacher):
            self._targets = torch.cat(
                [_in_half(next_token_logits(teacher, b)) for b in self.input_ids.split(batch_size)]
            )

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        rows = self.rows(share)
        targets = self._targets[rows]

        def divergence(start: int, logits: torch.Tensor) -> torch.Tensor:
            target = targets[start : start + len(logits)].to(logits.device).float()
            return F.kl_div(logits.float().log_softmax(-1), target, reduction="sum", log_target=True)

        with self.supernet.active_subnet(subnet):
            total = sum_over_batches(self.supernet, self.input_ids[rows], self.batch_size, divergence)
        return total / (len(rows) * self.input_ids.shape[1])

    @property
    def preparation(self) -> dict[str, int]:
        return {"tokens": self.tokens(), "flops": self.tokens() * self._teacher_flops}

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "teacher": self._teacher}


def forward_flops_per_token(model: "PreTrainedModel", sequence_length: int) -> int:
    """FLOPs of a forward pass; of a model without a table, two for each parameter."""
    config = getattr(model, "full_config", model.config)
    if has_architecture(config):
        return flops_per_token(config, sequence_length=sequence_length)
    return 2 * model.num_parameters(exclude_embeddings=True)


def _in_half(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of logits, in half precision; those below its least number are as good as 0 all the same."""
    return logits.float().log_softmax(-1).clamp(min=-6e4).half().cpu()
