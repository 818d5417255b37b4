"""Healed perplexity: perplexity of a subnet's student, healed from moments of the super-network."""

import math
from typing import TYPE_CHECKING, Any

import torch

from ..compat import uncompiled
from ..cost.counts import flops_per_token
from ..errors import WhittleError
from ..evaluation import as_input_ids, cross_entropy, perplexity
from ..fingerprints import fingerprint
from ..healing.cost import healing_flops_from_moments
from ..healing.from_moments import student_healed_from
from ..healing.supernet_moments import SupernetMoments
from ..models.placement import is_sharded
from ..models.source import Source
from ..models.weights import check_no_subnet
from ..subnet import SubnetConfig
from .base import TokenFitness

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel


class HealedPerplexity(TokenFitness):
    """Perplexity of a subnet's student, healed from moments of the super-network on calibration text.

    Second moments of the full super-network's activations are gathered once; healing a candidate takes sub-blocks of
    them and solves. Unlike `extract_subnet(heal=...)`, this approximates the student's hidden states by the
    super-network's in the student's basis, so that layers are healed independently. The approximation is worse for
    subnets without the first layer, whose hidden states are least like the super-network's; and for subnets without
    some layers where a norm follows attention and MLP, since nothing absorbs the output of these layers. The
    super-network must not change in between.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): held-out token ids, `(blocks, block_size)`.
        calibration_blocks (`datasets.Dataset` or `torch.Tensor`): token ids of training text, to gather moments on.
        batch_size (`int`, *optional*, defaults to 16): blocks in a forward pass.
        ridge (`float`, *optional*, defaults to 0.01): strength of the regressions, relative to the mean square of each
            feature.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar while moments are gathered.

    Raises:
        ValueError: if `ridge` is not positive.
        SubnetError: if a subnet is active.
        WhittleError: if the super-network is sharded, or its moments do not fit into memory.
        HealingError: if hidden states of the super-network contain NaN or Inf.
    """

    name = "healed-perplexity"

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        calibration_blocks: "Dataset | torch.Tensor",
        batch_size: int = 16,
        *,
        ridge: float = 1e-2,
        progress: bool = False,
    ):
        if is_sharded(supernet):
            raise WhittleError(f"{self.name} needs the whole model in each process; use perplexity for a sharded one")
        supernet = uncompiled(supernet)  # its students are run, not the compiled model
        check_no_subnet(supernet)
        super().__init__(supernet, blocks, batch_size)
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be a positive number, got {ridge}")
        self.ridge = ridge
        self._calibration_ids = as_input_ids(calibration_blocks, supernet.config.vocab_size)
        self._moments = SupernetMoments(supernet, self._calibration_ids, batch_size, progress)

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        input_ids = self.input_ids[self.rows(share)]
        return perplexity(cross_entropy(self.student(subnet), input_ids, self.batch_size))

    def student(self, subnet: SubnetConfig) -> "PreTrainedModel":
        """The healed student of a subnet, in single precision."""
        supernet = self.supernet
        subnet.validate(supernet.full_config)
        source = Source(supernet.state_dict(), supernet.full_config, supernet.device)
        return student_healed_from(self._moments, source, subnet, self.ridge)

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return super().flops(subnet, share) + self.healing_flops(subnet)

    def healing_flops(self, subnet: SubnetConfig) -> int:
        """FLOPs of healing one subnet's student."""
        return healing_flops_from_moments(self.supernet.full_config, subnet)

    @property
    def preparation(self) -> dict[str, int]:
        tokens, length = self._calibration_ids.numel(), self._calibration_ids.shape[1]
        forward = flops_per_token(self.supernet.full_config, sequence_length=length)
        return {"tokens": tokens, "flops": tokens * (forward + self._moments.flops_per_token)}

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "ridge": self.ridge, "calibration_data": fingerprint(self._calibration_ids)}
