"""Parts of a model that healing changes: the basis of its hidden states, and the matrices that read and write them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..architectures.dimensions import CHANNELS, NEURONS, Dimension
from ..architectures.registry import get_architecture
from ..architectures.table import Axis, Weight
from ..models.source import Source
from ..subnet import Shape, SubnetConfig, indices

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_ALIKE = 0.6
"""Least ratio to the median, and inverse of the largest, of scales that count as alike."""

_MOST_APART = 0.1
"""Largest share of channels with other scales; with more, a student heals better in kept channels."""


def apart(scale: torch.Tensor) -> torch.Tensor:
    """Which channels `(D,)` the last norm scales by far more or less than most, or another sign; all if most by 0."""
    relative = scale / scale.median()
    return ~((relative >= _ALIKE) & (relative <= 1 / _ALIKE))  # NaN is not alike


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
    def principal(cls, gram: torch.Tensor, size: int, is_centered: bool) -> "Basis":
        """Principal components.

        Where norms subtract the mean, the first `size - 1` in an orthonormal basis of the vectors of `size` with mean
        0; else the first `size`.

        Args:
            gram (`torch.Tensor`): `(D, D)`, Gram matrix of the channels of the teacher's normalized hidden states.
            size (`int`): channels of the student.
            is_centered (`bool`): whether norms subtract the mean.
        """
        from scipy.linalg import helmert

        values, vectors = torch.linalg.eigh(gram.double())
        kept = size - is_centered
        up, energies = vectors.flip(1)[:, :kept], values.flip(0)
        share = energies[:kept].sum() / energies.sum()
        if is_centered:
            up = up @ torch.from_numpy(helmert(size)).to(up)  # orthonormal rows, each of sum 0
        return cls(up.T.float(), (up * math.sqrt(len(gram) * share / size)).float())

    @classmethod
    def tied(cls, gram: torch.Tensor, size: int, scale: torch.Tensor) -> "Basis":
        """Principal components in which one matrix can embed tokens and read the last hidden states.

        A tied head is the embedding after the last norm, which scales each channel. If that scaled all alike, any
        rotation of channels would leave them tied. So channels that are `apart` are kept, and the others multiplied by
        the square root of their scale, relative to the median, before they are rotated.

        Args:
            gram (`torch.Tensor`): `(D, D)`, Gram matrix of the channels of the teacher's normalized hidden states.
            size (`int`): channels of the student, more than are `apart`.
            scale (`torch.Tensor`): `(D,)`, what the teacher's last norm multiplies channels by.
        """
        gram, is_kept = gram.double(), apart(scale)
        kept, rotated = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
        root = (scale / scale.median()).double()[rotated].sqrt()
        _, vectors = torch.linalg.eigh(root[:, None] * gram[rotated[:, None], rotated] * root)
        vectors = vectors.flip(1)[:, : size - len(kept)]
        down, up = gram.new_zeros(size, len(gram)), gram.new_zeros(len(gram), size)
        for basis, part in ((down, vectors.T * root), (up.T, vectors.T / root)):
            basis[range(len(kept)), kept] = 1
            basis[len(kept) :, rotated] = part
        square = ((down @ gram) * down).sum() / size  # of the student's hidden states, where the teacher's is `mean`
        mean = gram.trace() / len(gram)
        return cls(down.float(), (up * (square / mean).sqrt()).float())


@dataclass(frozen=True)
class Projections:
    """Matrices of a layer that read the same hidden states, and those that add to hidden states after them.

    Args:
        readers (`tuple`): matrices that read hidden states, in groups that read the output of the same norm and either
            all have a bias or all have none.
        writers (`tuple`): matrices whose output is added to the hidden states.
    """

    readers: tuple[tuple[Weight, ...], ...]
    writers: tuple[Weight, ...]

    @property
    def is_normalized(self) -> bool:
        """Whether the output of the writers passes a norm before it is added."""
        return any(weight.norm_after is not None for weight in self.writers)


def projections(config: "PreTrainedConfig") -> tuple[Projections, ...]:
    """The projections of a layer: one group where attention and MLP read the same hidden states, else one for each."""
    table = get_architecture(config)
    biased = {weight.name for weight in table.weights if weight.exists(config)}
    matrices = [weight for weight in table.weights if weight.in_layer and weight.is_matmul and weight.exists(config)]

    def group(*dimensions: Dimension) -> Projections:
        def is_inner(axis: Axis) -> bool:
            return not set(dimensions).isdisjoint(axis.dimensions)

        def source(weight: Weight) -> tuple[str, bool]:
            return str(weight.norm), bias_of(weight) in biased

        readers = [weight for weight in matrices if CHANNELS in weight.inputs.dimensions and is_inner(weight.outputs)]
        writers = [weight for weight in matrices if CHANNELS in weight.outputs.dimensions and is_inner(weight.inputs)]
        return Projections(tuple(tuple(same) for _, same in groupby(readers, source)), tuple(writers))

    attention, mlp = (*table.heads.dimensions, *table.keys.dimensions), (NEURONS,)
    if table.is_parallel(config):
        return (group(*attention, *mlp),)
    return group(*attention), group(*mlp)


def bias_of(weight: Weight) -> str:
    """Name of the bias of a matrix, if it has one."""
    return f"{weight.module}.bias"


def module_of(weight: Weight, layer: int = 0) -> str:
    """Name of the module of a matrix in a layer."""
    return weight.module.format(layer=layer)


def as_matrix(weight: Weight, tensor: torch.Tensor) -> torch.Tensor:
    """A view of a matrix as `(outputs, inputs)`."""
    return tensor.T if weight.is_transposed else tensor


def biases_of(tensors: Mapping[str, torch.Tensor], weights: Sequence[Weight], layer: int) -> list[torch.Tensor]:
    """The biases of those matrices of a layer that have one."""
    names = [bias_of(weight).format(layer=layer) for weight in weights]
    return [tensors[name] for name in names if name in tensors]


def side_by_side(tensors: Mapping[str, torch.Tensor], weights: Sequence[Weight], layer: int) -> torch.Tensor:
    """Matrices of a layer side by side, then the sum of their biases, if there are any, as a column."""
    biases = biases_of(tensors, weights, layer)
    matrices = [as_matrix(weight, tensors[weight.name.format(layer=layer)]) for weight in weights]
    return torch.cat([*matrices, *([torch.stack(biases).sum(0, dtype=torch.float32)[:, None]] if biases else [])], 1)


def absorbs(config: "PreTrainedConfig") -> bool:
    """Whether writers can absorb the output of layers that are left out: no norm scales what they add."""
    return not any(group.is_normalized for group in projections(config))


def layer_after(subnet: SubnetConfig, position: int, num_hidden_layers: int) -> int:
    """Layer of the super-network before which hidden states are to match again: the next kept one, or the end."""
    return (*subnet.layers, num_hidden_layers)[position + 1]


def head_matrix(config: "PreTrainedConfig") -> Weight:
    """The output matrix, or the embedding that it is tied to, as it reads hidden states."""
    return next(weight for weight in get_architecture(config).weights if weight.is_matmul and not weight.in_layer)


def output_matrix(config: "PreTrainedConfig") -> Weight | None:
    """The output matrix; `None` if it is tied to the embedding."""
    head = head_matrix(config)
    return None if head.is_shared(config) else head


def scale_of_last_norm(model: Source) -> torch.Tensor:
    """What the norm before the head multiplies channels by, `(D,)`."""
    return model.weight(f"{head_matrix(model.config).norm}.weight") + get_architecture(model.config).norms.offset


def may_change_basis(config: "PreTrainedConfig", channels: int) -> bool:
    """Whether hidden states of a student may have another basis than some channels, as far as configurations tell.

    No norm may scale the channels of what writers add. Where embeddings are tied, norms may not subtract the mean.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        channels (`int`): channels of the student.
    """
    is_free = output_matrix(config) is not None or get_architecture(config).norms.kind == "rms"
    return 1 < channels < config.hidden_size and absorbs(config) and is_free


def can_change_basis(model: Source, channels: int) -> bool:
    """Whether hidden states of a student of a model can have another basis than some of its channels.

    Beside `may_change_basis`, where embeddings are tied, the last norm must scale most channels alike, as `Basis.tied`
    has it.

    Args:
        model (`Source`): the super-network.
        channels (`int`): channels of the student.
    """
    if not may_change_basis(model.config, channels):
        return False
    if output_matrix(model.config) is not None:
        return True
    is_apart = apart(scale_of_last_norm(model))
    return channels > int(is_apart.sum()) and float(is_apart.float().mean()) <= _MOST_APART


def normalized(hidden_states: torch.Tensor, config: "PreTrainedConfig") -> torch.Tensor:
    """Hidden states as the norms of an architecture give them, without their weight and bias."""
    norms = get_architecture(config).norms
    normalize = F.layer_norm if norms.kind == "layer" else F.rms_norm
    return normalize(hidden_states, hidden_states.shape[-1:], eps=norms.epsilon(config))


def writer_features(config: "PreTrainedConfig", shape: Shape) -> list[tuple[int, ...]]:
    """For each layer of a model with the sizes `shape`, the number of inputs of each group of writers, plus 1."""
    groups, layers = projections(config), range(shape.num_hidden_layers)
    return [
        tuple(1 + sum(weight.inputs.size(shape.of_layer(layer)) for weight in group.writers) for group in groups)
        for layer in layers
    ]
