"""Bins: intervals of a cost that a subnet must lie in."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import BinError
from ..subnet import SubnetConfig
from .counts import student_shape
from .polynomial import Polynomial, flops_polynomial, kv_cache_polynomial, parameter_polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Bin(ABC):
    """An interval of a cost, both ends included; its children say of which.

    Args:
        low (`float`): least cost.
        high (`float`): greatest cost.

    Raises:
        BinError: if `low` exceeds `high` or is negative, or another setting is not above 0.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise BinError(f"a bin needs 0 <= low <= high, got low={self.low:g}, high={self.high:g}")
        for name in ("sequence_length", "bytes_per_value"):
            if not 0 < getattr(self, name, 1) < math.inf:
                raise BinError(f"{name} must be above 0, got {getattr(self, name)}")

    of: ClassVar[str]
    """What the cost is called."""

    def to_dict(self) -> dict[str, Any]:
        """The bin as a record of a search holds it."""
        return {"cost": self.of, **asdict(self)}

    @abstractmethod
    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        """The cost this bin bounds, for subnets of a super-network."""

    def contains(self, config: "PreTrainedConfig", subnet: SubnetConfig) -> bool:
        return self.low <= self.cost(config)(student_shape(config, subnet)) <= self.high


@dataclass(frozen=True)
class ParameterBin(Bin):
    """An interval of parameter counts.

    Args:
        low (`float`): fewest parameters.
        high (`float`): most parameters.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count input and output embeddings.
    """

    of = "parameters"
    embeddings: bool = True

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return parameter_polynomial(config, self.embeddings)


@dataclass(frozen=True)
class FlopsBin(Bin):
    """An interval of FLOPs of a forward pass, per token of sequences of `sequence_length`."""

    of = "FLOPs per token"
    sequence_length: int

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return flops_polynomial(config, self.sequence_length)


@dataclass(frozen=True)
class WeightBytesBin(Bin):
    """An interval of bytes of weights, `bytes_per_value` for each parameter."""

    of = "bytes of weights"
    bytes_per_value: int = 2

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return parameter_polynomial(config) * self.bytes_per_value


@dataclass(frozen=True)
class KVCacheBin(Bin):
    """An interval of bytes that generation caches for each token of context."""

    of = "bytes of cache per token"
    bytes_per_value: int = 2

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return kv_cache_polynomial(config, self.bytes_per_value)


class FittedCost(Protocol):
    """A cost fitted to measurements of one super-network, as a `LatencyModel` is."""

    @property
    def polynomial(self) -> Polynomial: ...

    def check(self, config: "PreTrainedConfig") -> None:
        """Raise `SubnetError` for another super-network than the one measured."""


@dataclass(frozen=True)
class LatencyBin(Bin):
    """An interval of seconds of a forward pass, predicted by a model of measured latencies.

    Args:
        low (`float`): least seconds.
        high (`float`): most seconds.
        model (`LatencyModel`): fitted to the super-network on the device in question.
    """

    of = "seconds"
    model: FittedCost

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        self.model.check(config)
        return self.model.polynomial
