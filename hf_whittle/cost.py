"""Parameters, FLOPs, bytes and latency of a subnet, in closed form from the architecture's table, and bins of them.

Every cost is a polynomial of a model's sizes. Making the polynomial takes some ten microseconds, applying it one: hold
on to it where many subnets of one super-network are counted.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import BinError, SubnetError
from .models.architecture import Dimension, Weight, get_architecture, head_dim
from .subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .latency import LatencyModel


@dataclass(frozen=True)
class Polynomial:
    """A cost as a function of the sizes of a model with `C` channels and, in layer `i`, `H_i` heads and `N_i` neurons.

    constant + C * channel + sum over layers of
    (layer + C * layer_channel + H_i * (head + C * head_channel) + N_i * (neuron + C * neuron_channel))

    No coefficient is negative, so a cost never falls as a size grows.
    """

    constant: float = 0
    channel: float = 0
    layer: float = 0
    layer_channel: float = 0
    head: float = 0
    head_channel: float = 0
    neuron: float = 0
    neuron_channel: float = 0

    def base(self, channels: int, layers: int) -> float:
        """What is paid whatever the heads and neurons are."""
        return self.constant + channels * self.channel + layers * (self.layer + channels * self.layer_channel)

    def per_head(self, channels: int) -> float:
        return self.head + channels * self.head_channel

    def per_neuron(self, channels: int) -> float:
        return self.neuron + channels * self.neuron_channel

    def __call__(self, sized: Shape | SubnetConfig) -> float:
        shape = sized if isinstance(sized, Shape) else sized.shape
        channels = shape.hidden_size
        heads, neurons = sum(shape.num_attention_heads), sum(shape.intermediate_size)
        base = self.base(channels, shape.num_hidden_layers)
        return base + heads * self.per_head(channels) + neurons * self.per_neuron(channels)

    def __mul__(self, factor: float) -> "Polynomial":
        return Polynomial(*(getattr(self, item.name) * factor for item in fields(self)))


_TERMS = {
    (): "",
    (Dimension.CHANNELS,): "channel",
    (Dimension.HEADS,): "head",
    (Dimension.NEURONS,): "neuron",
    (Dimension.CHANNELS, Dimension.HEADS): "head_channel",
    (Dimension.CHANNELS, Dimension.NEURONS): "neuron_channel",
}


def parameter_polynomial(config: "PreTrainedConfig", embeddings: bool = True) -> Polynomial:
    """Parameters as a polynomial of the sizes.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count weights with a vocabulary axis.
    """
    return _count_weights(*_counted(config), _own if embeddings else _own_without_vocabulary)


def flops_polynomial(config: "PreTrainedConfig", sequence_length: int) -> Polynomial:
    """FLOPs of a forward pass, per token of sequences of `sequence_length`, as a polynomial of the sizes.

    A multiplication and an addition are two FLOPs; attention is counted over the whole sequence, masked or not, as
    PyTorch's `FlopCounterMode` counts it. Norms, activations and softmax are not counted.
    """
    matmuls = _count_weights(*_counted(config), _multiplied)
    scores = 2 * 2 * sequence_length * head_dim(config)  # queries by keys, and weights by values
    return replace(matmuls, head=matmuls.head + scores)


def kv_cache_polynomial(config: "PreTrainedConfig", bytes_per_value: int = 2) -> Polynomial:
    """Bytes of keys and values that generation keeps for each token of context, as a polynomial of the sizes."""
    return Polynomial(head=2 * head_dim(config) * bytes_per_value)


def _own(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared)


def _own_without_vocabulary(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared and all(axis.dimension is not Dimension.VOCABULARY for axis in weight.axes))


def _multiplied(weight: Weight, is_shared: bool) -> int:
    return 2 * weight.is_matmul


def _counted(config: "PreTrainedConfig") -> tuple[str, tuple[bool, ...], int, int]:
    """All that a count depends on: the architecture, which of its conditions hold, head_dim, vocabulary."""
    conditions = get_architecture(config).conditions
    return (
        config.model_type,
        tuple(bool(getattr(config, name)) for name in conditions),
        head_dim(config),
        config.vocab_size,
    )


@lru_cache(maxsize=1024)
def _count_weights(
    model_type: str,
    conditions: tuple[bool, ...],
    head_dim: int,
    vocab_size: int,
    factor: Callable[[Weight, bool], int],
) -> Polynomial:
    architecture = get_architecture(model_type)
    holds = dict(zip(architecture.conditions, conditions, strict=True))
    terms = dict.fromkeys((item.name for item in fields(Polynomial)), 0)
    for weight in architecture.weights:
        if weight.exists_if is not None and not holds[weight.exists_if]:
            continue
        size = factor(weight, weight.shared_if is not None and holds[weight.shared_if])
        dimensions = []
        for axis in weight.axes:
            size *= axis.block_size(head_dim)
            if axis.dimension is Dimension.VOCABULARY:
                size *= vocab_size
            else:
                dimensions.append(axis.dimension)
        term = _TERMS[tuple(sorted(dimensions, key=lambda dimension: dimension.name))]
        if weight.in_layer and term in ("", "channel"):
            term = f"layer_{term}".rstrip("_")
        terms[term or "constant"] += size
    return Polynomial(**terms)


def num_parameters(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, embeddings: bool = True
) -> int:
    """Parameters of a subnet's student, or of the whole model if `subnet` is `None`.

    Equals `sum(p.numel() for p in student.parameters())`; tied embeddings are counted once.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig` or `Shape`, *optional*): what is kept of it, or the sizes of a student; those of a
            padded one are `padded_shape`'s.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count input and output embeddings.
    """
    return int(parameter_polynomial(config, embeddings)(_student_shape(config, subnet)))


def flops_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, sequence_length: int
) -> int:
    """FLOPs of a forward pass per token, in sequences of `sequence_length`; see `flops_polynomial`."""
    return int(flops_polynomial(config, sequence_length)(_student_shape(config, subnet)))


def training_flops_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, sequence_length: int
) -> int:
    """FLOPs of a training step per token: a forward pass, and a backward pass that costs twice as much."""
    return 3 * flops_per_token(config, subnet, sequence_length=sequence_length)


def kv_cache_bytes_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, bytes_per_value: int = 2
) -> int:
    """Bytes of keys and values that generation keeps for each token of context."""
    return int(kv_cache_polynomial(config, bytes_per_value)(_student_shape(config, subnet)))


def weight_bytes(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, bytes_per_value: float = 2
) -> int:
    """Bytes of the student's weights, in memory and, but for a header of some kilobytes, on disk."""
    return int(bytes_per_value * num_parameters(config, subnet))


def padded_shape(config: "PreTrainedConfig", subnet: SubnetConfig) -> Shape:
    """The sizes of a student in the `padded` format: layers all alike, and heads that fill the hidden size.

    Raises:
        SubnetError: if the hidden size does not have room for the heads, or is not a multiple of a head's channels.
    """
    shape, width = _student_shape(config, subnet), head_dim(config)
    heads, rest = divmod(shape.hidden_size, width)
    most = max(shape.num_attention_heads)
    if most > heads:
        raise SubnetError(
            f"a padded student needs num_attention_heads * {width} <= hidden_size in every layer, got {most} heads, "
            f"{most * width} channels wide, and hidden_size={shape.hidden_size}; use format='auto'"
        )
    if rest:
        raise SubnetError(
            f"a padded student needs a hidden_size that is a multiple of the {width} channels of a head, got "
            f"{shape.hidden_size}; use format='auto'"
        )
    layers = shape.num_hidden_layers
    return Shape(shape.hidden_size, (heads,) * layers, (max(shape.intermediate_size),) * layers)


def _student_shape(config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None) -> Shape:
    if isinstance(subnet, Shape):
        return subnet
    if subnet is None:
        return Shape.from_config(config)
    subnet.validate(config)
    return subnet.shape


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
        return self.low <= self.cost(config)(_student_shape(config, subnet)) <= self.high


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


@dataclass(frozen=True)
class LatencyBin(Bin):
    """An interval of seconds that a forward pass takes, as a model of measured latencies predicts them.

    Args:
        low (`float`): least seconds.
        high (`float`): most seconds.
        model (`LatencyModel`): fitted to the super-network on the device in question.
    """

    of = "seconds"
    model: "LatencyModel"

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        self.model.check(config)
        return self.model.polynomial
