"""Tokens and FLOPs of each fitness, as `Fitness` counts them, without a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from ..cost.counts import flops_per_token, num_parameters
from ..fitness.healed import HealedPerplexity
from ..fitness.registry import STAGES
from ..healing.cost import healing_flops_from_moments, prediction_flops
from ..healing.moments_cost import products
from ..subnet import SubnetConfig
from .blocks import Blocks

if TYPE_CHECKING:
    from ..fitness.probe import ProbeConfig

_JUDGED = 1 / 16
"""Share of the tokens on which `HealedPerplexity` judges a student and its slice."""


@dataclass(frozen=True)
class Subject:
    """What the FLOPs of an evaluation depend on.

    Args:
        forward (`int`): FLOPs of a forward pass per token.
        matrices (`int`): those of its products with weights alone.
        parameters (`int`): parameters.
        healing (`int`): FLOPs of healing from moments; 0 where nothing is healed.
    """

    forward: int
    matrices: int
    parameters: int
    healing: int


@dataclass(frozen=True)
class Fitnesses:
    """Costs of the fitnesses of a recipe.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        teacher (`PreTrainedConfig`): the teacher's.
        blocks (`Blocks`): numbers of blocks.
        max_gap (`int`): largest gap between kept layers whose moments are exact.
        probe (`ProbeConfig`, *optional*): settings of probes, where the fitness trains some.
        is_healed (`bool`): whether probes are healed first.
        shares (`tuple[float, ...]`): shares of the tokens that the search evaluates on.
        stretch (`float`): how many times the tokens of the whole vocabulary documents have in others, at most.
    """

    config: PreTrainedConfig
    teacher: PreTrainedConfig
    blocks: Blocks
    max_gap: int
    probe: "ProbeConfig | None"
    is_healed: bool
    shares: tuple[float, ...] = ()
    stretch: float = 1.0

    def heals(self, name: str) -> bool:
        """Whether a fitness heals candidates."""
        return name in (HealedPerplexity.name, "staged") or (name == "probe" and self.is_healed)

    def subject(self, subnet: SubnetConfig, name: str) -> Subject:
        """A subnet as a fitness counts it."""
        forward, matrices = (flops_per_token(self.config, subnet, sequence_length=n) for n in (self.blocks.size, 0))
        return Subject(forward, matrices, num_parameters(self.config, subnet), self.healing(subnet, name))

    def healing(self, subnet: SubnetConfig, name: str) -> int:
        """FLOPs of healing a subnet from moments; 0 if a fitness does not heal."""
        if not self.heals(name):
            return 0
        return healing_flops_from_moments(self.config, subnet, self.blocks.healing * self.blocks.size, self.max_gap)

    def tokens(self, name: str, share: float = 1.0) -> int:
        """Tokens of an evaluation."""
        if name == "staged":
            return self.tokens(self._stage(share))
        if name == "probe":
            return self._trained(share) + self.blocks.search * self.blocks.size
        return {"importance": 0, "magnitude": 0, "synflow": 1}.get(name, self._read(share))

    def flops(self, name: str, subject: Subject, share: float = 1.0) -> int:
        """FLOPs of an evaluation.

        Raises:
            KeyError: if there is no fitness of this name.
        """
        if name == "staged":
            return self.flops(self._stage(share), subject)
        return _FLOPS[name](self, subject, share)

    def preparation(self, name: str) -> tuple[int, int]:
        """Tokens and FLOPs before the first evaluation."""
        tokens, flops = self._moments() if self.heals(name) else (0, 0)
        length = self.blocks.size
        read = 0
        if name == "kl":
            read = self.blocks.search * length
        elif name in ("probe", "staged"):
            assert self.probe is not None
            read = self.probe.steps * self.probe.batch_size * length if self.probe.beta else 0
        return tokens + read, flops + read * flops_per_token(self.teacher, sequence_length=length)

    def _moments(self) -> tuple[int, int]:
        tokens = self.blocks.healing * self.blocks.size
        head = 2 * self.config.vocab_size * self.config.hidden_size  # is not run
        forward = flops_per_token(self.config, sequence_length=self.blocks.size) - head
        gathered = tokens * (forward + 2 * products(self.config, self.max_gap))
        return tokens, gathered + prediction_flops(self.config, tokens, self.max_gap)

    def _stage(self, share: float) -> str:
        return dict(zip(self.shares, STAGES, strict=True))[share]

    def _read(self, share: float) -> int:
        return math.ceil(max(1, round(share * self.blocks.search)) * self.blocks.size * self.stretch)

    def _trained(self, share: float) -> int:
        assert self.probe is not None
        return max(1, round(share * self.probe.steps)) * self.probe.batch_size * self.blocks.size

    def _healed(self, subject: Subject) -> int:
        return subject.healing + 2 * self._read(_JUDGED) * subject.forward

    def _probed(self, subject: Subject, share: float) -> int:
        evaluated = self.blocks.search * self.blocks.size * subject.forward
        healed = self._healed(subject) if self.is_healed else 0
        return healed + 3 * self._trained(share) * subject.forward + evaluated


def _forward(fitnesses: Fitnesses, subject: Subject, share: float) -> int:
    return fitnesses._read(share) * subject.forward


def _gradients(fitnesses: Fitnesses, subject: Subject, share: float) -> int:
    return 3 * fitnesses._read(share) * subject.forward


_FLOPS: dict[str, Callable[[Fitnesses, Subject, float], int]] = {
    "perplexity": _forward,
    "kl": _forward,
    "bits-per-byte": lambda own, subject, share: 2 * _forward(own, subject, share),  # windows overlap at the end
    "healed-perplexity": lambda own, subject, share: _forward(own, subject, share) + own._healed(subject),
    "probe": lambda own, subject, share: own._probed(subject, share),
    "importance": lambda own, subject, share: 0,
    "magnitude": lambda own, subject, share: subject.parameters,
    "gradient-norm": _gradients,
    "snip": _gradients,
    "synflow": lambda own, subject, share: 6 * subject.parameters,
    "jacobian-covariance": lambda own, subject, share: own._read(share) * (3 * subject.forward - subject.matrices),
}
