"""Parameters, FLOPs and cache bytes of a subnet, in closed form from the architecture's table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from .architecture import Dimension, Weight, get_architecture, head_dim
from .errors import BinError
from .subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Polynomial:
    """A cost as a function of the sizes of a model with `C` channels and, in layer `i`, `H_i` heads and `N_i` neurons.

    constant + C * channel + sum over layers of
    (layer + C * layer_channel + H_i * (head + C * head_channel) + N_i * (neuron + C * neuron_channel))
    """

    constant: int = 0
    channel: int = 0
    layer: int = 0
    layer_channel: int = 0
    head: int = 0
    head_channel: int = 0
    neuron: int = 0
    neuron_channel: int = 0

    def base(self, channels: int, layers: int) -> int:
        """What is paid whatever the heads and neurons are."""
        return self.constant + channels * self.channel + layers * (self.layer + channels * self.layer_channel)

    def per_head(self, channels: int) -> int:
        return self.head + channels * self.head_channel

    def per_neuron(self, channels: int) -> int:
        return self.neuron + channels * self.neuron_channel

    def __call__(self, shape: Shape) -> int:
        channels = shape.hidden_size
        heads, neurons = sum(shape.num_attention_heads), sum(shape.intermediate_size)
        base = self.base(channels, shape.num_hidden_layers)
        return base + heads * self.per_head(channels) + neurons * self.per_neuron(channels)


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
    return _count_weights(*_what_counts(config), _own if embeddings else _own_without_vocabulary)


def flops_polynomial(config: "PreTrainedConfig", sequence_length: int) -> Polynomial:
    """FLOPs of a forward pass, per token of sequences of `sequence_length`, as a polynomial of the sizes.

    A multiplication and an addition are two FLOPs; attention is counted over the whole sequence, masked or not, as
    PyTorch's `FlopCounterMode` counts it. Norms, activations and softmax are not counted.
    """
    matmuls = _count_weights(*_what_counts(config), _multiplied)
    scores = 2 * 2 * sequence_length * head_dim(config)  # queries by keys, and weights by values
    return replace(matmuls, head=matmuls.head + scores)


def _own(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared)


def _own_without_vocabulary(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared and all(axis.dimension is not Dimension.VOCABULARY for axis in weight.axes))


def _multiplied(weight: Weight, is_shared: bool) -> int:
    return 2 * weight.is_matmul


def _what_counts(config: "PreTrainedConfig") -> tuple[tuple[tuple[Weight, bool], ...], int, int]:
    """The weights a model has, each with whether it is another one's tensor; head_dim; vocabulary."""
    weights = get_architecture(config).weights
    present = tuple((weight, weight.is_shared(config)) for weight in weights if weight.exists(config))
    return present, head_dim(config), config.vocab_size


@lru_cache(maxsize=256)
def _count_weights(
    weights: tuple[tuple[Weight, bool], ...], head_dim: int, vocab_size: int, factor: Callable[[Weight, bool], int]
) -> Polynomial:
    terms = dict.fromkeys(Polynomial.__dataclass_fields__, 0)
    for weight, is_shared in weights:
        size = factor(weight, is_shared)
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


def num_parameters(config: "PreTrainedConfig", subnet: SubnetConfig | None = None, *, embeddings: bool = True) -> int:
    """Parameters of a subnet's student, or of the whole model if `subnet` is `None`.

    Equals `sum(p.numel() for p in student.parameters())`; tied embeddings are counted once.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`, *optional*): what is kept of it.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count input and output embeddings.
    """
    return parameter_polynomial(config, embeddings)(_student_shape(config, subnet))


def flops_per_token(config: "PreTrainedConfig", subnet: SubnetConfig | None = None, *, sequence_length: int) -> int:
    """FLOPs of a forward pass per token, in sequences of `sequence_length`; see `flops_polynomial`."""
    return flops_polynomial(config, sequence_length)(_student_shape(config, subnet))


def training_flops_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | None = None, *, sequence_length: int
) -> int:
    """FLOPs of a training step per token: a forward pass, and a backward pass that costs twice as much."""
    return 3 * flops_per_token(config, subnet, sequence_length=sequence_length)


def kv_cache_bytes_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | None = None, *, bytes_per_value: int = 2
) -> int:
    """Bytes of keys and values that generation keeps for each token of context."""
    heads = sum(_student_shape(config, subnet).num_attention_heads)
    return 2 * heads * head_dim(config) * bytes_per_value


def _student_shape(config: "PreTrainedConfig", subnet: SubnetConfig | None) -> Shape:
    if subnet is None:
        return Shape.from_config(config)
    subnet.validate(config)
    return subnet.shape


@dataclass(frozen=True)
class ParameterBin:
    """An interval of parameter counts, both ends included.

    Args:
        low (`float`): fewest parameters.
        high (`float`): most parameters.

    Raises:
        BinError: if `low` exceeds `high` or is negative.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise BinError(f"a bin needs 0 <= low <= high, got low={self.low:g}, high={self.high:g}")

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        """The cost this bin bounds, for subnets of a super-network."""
        return parameter_polynomial(config)

    def contains(self, config: "PreTrainedConfig", subnet: SubnetConfig) -> bool:
        return self.low <= num_parameters(config, subnet) <= self.high
