"""Healed perplexity: perplexity of a subnet's student, healed from moments of the super-network."""

import math
from typing import TYPE_CHECKING, Any

import torch

from ..compat.torch import uncompiled
from ..cost.counts import flops_per_token
from ..errors import WhittleError
from ..evaluation import as_input_ids, cross_entropy, perplexity
from ..fingerprints import fingerprint
from ..healing.cost import healing_flops_from_moments, prediction_flops
from ..healing.from_moments import student_healed_from
from ..healing.supernet_moments import SupernetMoments
from ..models.placement import is_sharded
from ..models.slicing import slice_weights, student_model
from ..models.source import source_of
from ..models.weights import check_no_subnet
from ..subnet import SubnetConfig
from .base import TokenFitness

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel


_JUDGED = 1 / 16
"""Share of the tokens that tell whether a healed student is better than the slice."""


class HealedPerplexity(TokenFitness):
    """Perplexity of a subnet's student, healed from moments of the super-network on calibration text.

    Second moments of the full super-network's activations are gathered once; healing a candidate takes sub-blocks of
    them and solves. Unlike `extract_subnet(heal=...)`, this approximates the student's hidden states by the
    super-network's in the student's basis, so that layers are healed independently. The approximation is worse for
    subnets without the first layer, whose hidden states are least like the super-network's; and for subnets without
    some layers where a norm follows attention and MLP, since nothing absorbs the output of these layers. A student that
    a sixteenth of the tokens shows to be worse than the slice stays a slice. The super-network must not change in
    between.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): held-out token ids, `(blocks, block_size)`.
        calibration_blocks (`datasets.Dataset` or `torch.Tensor`): token ids of training text, to gather moments on.
        batch_size (`int`, *optional*): blocks in a forward pass; by default 4,096 tokens on a CPU, 16,384 on another
            device, and fewer where the activations of all layers would take more than a gigabyte.
        ridge (`float`, *optional*): strength of the regressions, relative to the mean square of each feature; by
            default three times the features per token.
        memory (`float`, *optional*): gigabytes that moments may take; by default 95% of what is free. With less, more
            layers that are left out between two kept ones are approximated. In several processes, give each the same, a
            share of the machine's, so that all approximate the same; a recipe does.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar while moments are gathered.

    Raises:
        ValueError: if `ridge` or `memory` is not positive.
        SubnetError: if a subnet is active.
        WhittleError: if the super-network is sharded, or its moments do not fit into memory.
        HealingError: if hidden states of the super-network contain NaN or Inf.
    """

    name = "healed-perplexity"
    may_be_offloaded = True

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        calibration_blocks: "Dataset | torch.Tensor",
        batch_size: int | None = None,
        *,
        ridge: float | None = None,
        memory: float | None = None,
        progress: bool = False,
    ):
        if is_sharded(supernet):
            raise WhittleError(f"{self.name} needs the whole model in each process; use perplexity for a sharded one")
        supernet = uncompiled(supernet)  # its students are run, not the compiled model
        check_no_subnet(supernet)
        super().__init__(supernet, blocks, batch_size)
        for name, value in (("ridge", ridge), ("memory", memory)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")
        self.ridge, self._memory = ridge, memory
        self._calibration_ids = as_input_ids(calibration_blocks, supernet.config.vocab_size)
        self._moments = self._gathered(progress)

    def _gathered(self, progress: bool) -> SupernetMoments:
        return SupernetMoments(self.supernet, self._calibration_ids, self.batch_size, progress, self._memory)

    def __getstate__(self) -> dict[str, Any]:
        """The state without moments, which a copy gathers again."""
        return {name: value for name, value in vars(self).items() if name != "_moments"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._moments = self._gathered(progress=False)

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        input_ids = self.input_ids[self.rows(share)]
        return perplexity(cross_entropy(self.student(subnet), input_ids, self.batch_size))

    def student(self, subnet: SubnetConfig) -> "PreTrainedModel":
        """The healed student of a subnet, or its slice if that is better on a sixteenth of the tokens.

        It is in single precision.
        """
        supernet, config = self.supernet, self.supernet.full_config
        subnet.validate(config)
        source = source_of(supernet)
        healed = student_healed_from(self._moments, source, subnet, self.ridge)
        few = self.input_ids[self.rows(_JUDGED)]
        loss = cross_entropy(healed, few, self.batch_size)
        with supernet.active_subnet(subnet):
            of_slice = cross_entropy(supernet, few, self.batch_size)
        if math.isfinite(loss) and not loss > of_slice:  # the latter may be NaN
            return healed
        sliced = slice_weights(source.weights, config, subnet, dtype=torch.float32)
        return student_model(config, subnet, sliced, torch.float32)

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return super().flops(subnet, share) + self.healing_flops(subnet)

    def healing_flops(self, subnet: SubnetConfig) -> int:
        """FLOPs of healing one subnet's student, and of judging it and the slice."""
        moments = self._moments
        healing = healing_flops_from_moments(moments.config, subnet, moments.tokens, moments.max_gap)
        return healing + 2 * super().flops(subnet, _JUDGED)

    @property
    def preparation(self) -> dict[str, int]:
        tokens, length = self._calibration_ids.numel(), self._calibration_ids.shape[1]
        config = self.supernet.full_config
        head = 2 * config.vocab_size * config.hidden_size  # not run
        forward = flops_per_token(config, sequence_length=length) - head
        gathering = tokens * (forward + self._moments.flops_per_token)
        predictions = prediction_flops(self._moments.config, tokens, self._moments.max_gap)
        return {"tokens": tokens, "flops": gathering + predictions}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **super().settings,
            "ridge": self.ridge,
            "max_gap": self._moments.max_gap,
            "calibration_data": fingerprint(self._calibration_ids),
        }
