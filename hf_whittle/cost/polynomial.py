"""Costs as polynomials of a model's sizes, made from the architecture's table.

Making a polynomial takes some ten microseconds, applying it one: keep it where many subnets of one super-network are
counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ..models.architecture import Dimension, Weight, get_architecture, head_dim
from ..subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
        """Cost of a model without heads and neurons."""
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
        config (`PreTrainedConfig`): configuration of the super-network.
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
    """Everything that a count depends on: architecture, its conditions, `head_dim` and vocabulary size."""
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
