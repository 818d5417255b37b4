"""Bins: intervals of a cost that a subnet must lie in."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BinError
from ..subnet import SubnetConfig
from .counts import student_shape
from .polynomial import Polynomial, flops_polynomial, kv_cache_polynomial, parameter_polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Bin(ABC):
    """An interval of a cost, both ends included; each subclass bounds another cost.

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
    """Name of the cost."""

    def to_dict(self) -> dict[str, Any]:
        """The bin, for the record of a search."""
        return {"cost": self.of, **asdict(self)}

    @abstractmethod
    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        """The bounded cost, for subnets of a super-network."""

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
