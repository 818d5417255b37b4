"""Parts of a model that healing changes: the basis of its hidden states, and the matrices that read and write them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..models.architecture import Dimension, Weight, get_architecture, head_dim
from ..subnet import Shape, SubnetConfig, indices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Basis:
    """Maps between the hidden states of teacher and student.

    Args:
        down (`torch.Tensor`): `(d, D)`, from the teacher's hidden states to the student's.
        up (`torch.Tensor`, *optional*): `(D, d)`, from the student's normalized hidden states to the teacher's; `None`
            where the student keeps channels and their norms.
    """

    down: torch.Tensor
    up: torch.Tensor | None = None

    @classmethod
    def channels(cls, subnet: SubnetConfig, size: int, device: torch.device) -> "Basis":
        """The basis of a student that keeps some of `size` channels."""
        return cls(torch.eye(size, device=device)[list(indices(subnet.hidden_size))])

    @classmethod
    def principal(cls, gram: torch.Tensor, size: int) -> "Basis":
        """The first `size - 1` principal components, in an orthonormal basis of the vectors of `size` with mean 0.

        Args:
            gram (`torch.Tensor`): `(D, D)`, Gram matrix of the channels of the teacher's normalized hidden states.
            size (`int`): channels of the student.
        """
        from scipy.linalg import helmert

        values, vectors = torch.linalg.eigh(gram.double())
        components, energies = vectors.flip(1)[:, : size - 1], values.flip(0)
        share = energies[: size - 1].sum() / energies.sum()
        centered = torch.from_numpy(helmert(size)).to(components)  # orthonormal rows, each of sum 0
        up = components @ centered
        return cls(up.T.float(), (up * math.sqrt(len(gram) * share / size)).float())


@dataclass(frozen=True)
class Projections:
    """Matrices of a layer that read the same hidden states, and those that add to hidden states after them."""

    readers: tuple[Weight, ...]
    writers: tuple[Weight, ...]


def projections(config: "PreTrainedConfig") -> tuple[Projections, ...]:
    """The projections of a layer: one group where attention and MLP read the same hidden states, else one for each."""
    table = get_architecture(config)
    of_dimension = []
    for dimension in (Dimension.HEADS, Dimension.NEURONS):
        matrices = [
            (tuple(axis.dimension for axis in weight.axes), weight)
            for weight in table.weights
            if weight.in_layer and weight.is_matmul
        ]
        readers = tuple(weight for axes, weight in matrices if axes == (dimension, Dimension.CHANNELS))
        writers = tuple(weight for axes, weight in matrices if axes == (Dimension.CHANNELS, dimension))
        of_dimension.append(Projections(readers, writers))
    if table.parallel_if is not None and getattr(config, table.parallel_if):
        attention, mlp = of_dimension
        return (Projections(attention.readers + mlp.readers, attention.writers + mlp.writers),)
    return tuple(of_dimension)


def module_of(weight: Weight, layer: int = 0) -> str:
    """Name of the module of a matrix in a layer."""
    return weight.name.format(layer=layer).removesuffix(".weight")


def layer_after(subnet: SubnetConfig, position: int, num_hidden_layers: int) -> int:
    """Layer of the super-network before which hidden states are to match again: the next kept one, or the end."""
    return (*subnet.layers, num_hidden_layers)[position + 1]


def output_matrix(config: "PreTrainedConfig") -> Weight | None:
    """The output matrix; `None` if it is tied to the embedding."""
    for weight in get_architecture(config).weights:
        if weight.is_matmul and not weight.in_layer and not weight.is_shared(config):
            return weight
    return None


def writer_features(config: "PreTrainedConfig", shape: Shape) -> list[tuple[int, ...]]:
    """For each layer of a model with the sizes `shape`, the number of inputs of each group of writers, plus 1."""
    return [
        tuple(
            1 + sum(entries(weight, 1, config, shape, layer) for weight in group.writers)
            for group in projections(config)
        )
        for layer in range(shape.num_hidden_layers)
    ]


def entries(weight: Weight, axis: int, config: "PreTrainedConfig", shape: Shape, layer: int) -> int:
    """Rows of a weight along an axis of heads or neurons, in a layer of a model with the sizes `shape`."""
    dimension, block = weight.axes[axis].dimension, weight.axes[axis].block_size(head_dim(config))
    return getattr(shape, dimension.value)[layer] * block
