"""Bins: intervals of a cost that a subnet must lie in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BinError
from ..subnet import SubnetConfig
from .counts import student_shape
from .polynomial import Polynomial, flops_polynomial, kv_cache_polynomial, parameter_polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _Rates(dict[int, float]):
    """Tokens per byte by size of the vocabulary, which a bin's hash needs to be hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


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
        rates = getattr(self, "tokens_per_byte", None)
        if rates is not None:
            if not rates or not all(0 < rate < math.inf for rate in rates.values()):
                raise BinError(f"tokens_per_byte must be numbers above 0 by size of the vocabulary, got {rates}")
            object.__setattr__(self, "tokens_per_byte", _Rates(sorted(rates.items())))

    of: ClassVar[str]
    """Name of the cost."""

    def to_dict(self) -> dict[str, Any]:
        """The bin, for the record of a search."""
        values = asdict(self)
        if values.get("tokens_per_byte", {}) is None:
            del values["tokens_per_byte"]
        of = self.of.replace("token", "byte of text") if "tokens_per_byte" in values else self.of
        return {"cost": of, **values}

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
    """An interval of FLOPs of a forward pass, per token of sequences of `sequence_length`; or per byte of text.

    Args:
        low (`float`): fewest FLOPs.
        high (`float`): most FLOPs.
        sequence_length (`int`): tokens of a sequence.
        tokens_per_byte (`Mapping[int, float]`, *optional*): tokens for each byte of text, by the size of the
            vocabulary, such as `BitsPerByte.tokens_per_byte` gives. With it, the bin is one of FLOPs per byte.
    """

    of = "FLOPs per token"
    sequence_length: int
    tokens_per_byte: Mapping[int, float] | None = None

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return _of_text(flops_polynomial(config, self.sequence_length), self.tokens_per_byte, config)


@dataclass(frozen=True)
class WeightBytesBin(Bin):
    """An interval of bytes of weights, `bytes_per_value` for each parameter."""

    of = "bytes of weights"
    bytes_per_value: int = 2

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return parameter_polynomial(config) * self.bytes_per_value


@dataclass(frozen=True)
class KVCacheBin(Bin):
    """An interval of bytes that generation caches for each token of context, or for each byte of text.

    Args:
        low (`float`): fewest bytes.
        high (`float`): most bytes.
        bytes_per_value (`int`, *optional*, defaults to 2): bytes of a key's or value's channel.
        tokens_per_byte (`Mapping[int, float]`, *optional*): as of `FlopsBin`.
    """

    of = "bytes of cache per token"
    bytes_per_value: int = 2
    tokens_per_byte: Mapping[int, float] | None = None

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        return _of_text(kv_cache_polynomial(config, self.bytes_per_value), self.tokens_per_byte, config)


def _of_text(cost: Polynomial, tokens_per_byte: Mapping[int, float] | None, config: "PreTrainedConfig") -> Polynomial:
    return cost if tokens_per_byte is None else cost.of_text(tokens_per_byte, config.vocab_size)
