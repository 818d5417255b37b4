"""Weights of a student while they are healed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..models.architecture import Dimension, Weight, get_architecture, head_dim
from ..models.elastic import take
from ..models.source import Source
from ..models.supernet import axis_rows
from ..models.weights import embedding
from ..subnet import SubnetConfig, count
from .parts import Basis, output_matrix
from .regression import Fit, Moments


class StudentWeights:
    """Weights of a student in single precision, and the steps that change them in place.

    Args:
        teacher (`Source`): the super-network.
        subnet (`SubnetConfig`): the student's.
        sliced (`Mapping[str, torch.Tensor]`): the student's sliced weights; copied.
        ridges (`Sequence[float]`): strengths that each regression chooses from.
    """

    def __init__(
        self, teacher: Source, subnet: SubnetConfig, sliced: Mapping[str, torch.Tensor], ridges: Sequence[float]
    ):
        self.tensors = {name: tensor.to(teacher.device, torch.float32, copy=True) for name, tensor in sliced.items()}
        self.fits: list[dict[str, Any]] = []
        self.basis = Basis.channels(subnet, teacher.config.hidden_size, teacher.device)
        self.teacher, self.ridges = teacher, ridges
        self._subnet = subnet

    @property
    def can_change_basis(self) -> bool:
        """Whether the basis is free: some channels are left out, and the output matrix is not tied."""
        config = self.teacher.config
        return 1 < count(self._subnet.hidden_size) < config.hidden_size and output_matrix(config) is not None

    @property
    def embedding(self) -> torch.Tensor:
        return self.tensors[embedding(self.teacher.config).name]

    def change_basis(self, gram: torch.Tensor) -> None:
        """Change the basis to principal components: embedding, norms and writers now, readers in `heal_reader`.

        Args:
            gram (`torch.Tensor`): `(D, D)`, Gram matrix of the channels of the teacher's normalized hidden states.
        """
        config = self.teacher.config
        self.basis = Basis.principal(gram, count(self._subnet.hidden_size))
        self.embedding.copy_(self.teacher.weight(embedding(config).name) @ self.basis.down.T)
        table = get_architecture(config)
        for norm in {weight.norm for weight in table.weights if weight.norm is not None}:
            for position in range(len(self._subnet.layers)) if "{layer}" in norm else (0,):
                self.tensors[norm.format(layer=position) + ".weight"].fill_(1)
                self.tensors[norm.format(layer=position) + ".bias"].zero_()
        for weight in table.weights:
            if weight.in_layer and weight.is_matmul and weight.axes[0].dimension is Dimension.CHANNELS:
                for position, layer in enumerate(self._subnet.layers):
                    self._change_basis_of_writer(weight, position, layer)

    def _change_basis_of_writer(self, weight: Weight, position: int, layer: int) -> None:
        matrix = self._slice_of_teacher(weight, 1, position)
        self.tensors[weight.name.format(layer=position)].copy_(self.basis.down @ matrix)
        bias = self.tensors.get(_bias(weight).format(layer=position))
        if bias is not None:
            bias.copy_(self.basis.down @ self.teacher.weight(_bias(weight), layer))

    def _slice_of_teacher(self, weight: Weight, axis: int, position: int) -> torch.Tensor:
        """A matrix of the super-network, sliced along one axis."""
        chosen = self._rows(weight, axis, position)
        return take(self.teacher.weight(weight.name, self._subnet.layers[position]), axis, chosen)

    def _rows(self, weight: Weight, axis: int, position: int) -> Any:
        width = head_dim(self.teacher.config)
        return axis_rows(weight.axes[axis], self._subnet, position, width, self.teacher.device)

    # Readers: matrices that multiply the output of a norm

    def start_of_reader(self, weight: Weight, position: int) -> torch.Tensor:
        """Map from the student's normalized hidden states and 1 to the teacher's, before a fit: `(D, d + 1)`.

        Args:
            weight (`Weight`): the reader.
            position (`int`): its layer among the kept ones.
        """
        assert weight.norm is not None
        if self.basis.up is None:  # the student's norm is a slice of the teacher's
            return F.pad(self.basis.down.T, (0, 1))
        scale, shift = self.norm_of_teacher(weight, self._subnet.layers[position])
        return torch.cat([scale[:, None] * self.basis.up, shift[:, None]], 1)

    def norm_of_teacher(self, weight: Weight, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the norm before a reader, in the super-network."""
        return self.teacher.weight(f"{weight.norm}.weight", layer), self.teacher.weight(f"{weight.norm}.bias", layer)

    def heal_reader(self, weight: Weight, position: int, moments: Moments | None) -> None:
        """Fold a prediction of the teacher's normalized hidden states into a matrix that reads the student's.

        Args:
            weight (`Weight`): a matrix of a layer, or the output matrix.
            position (`int`): its layer among the kept ones; the last for the output matrix.
            moments (`Moments`, *optional*): the student's normalized hidden states and 1 as features, the teacher's as
                targets; without them, only the basis is changed.
        """
        start = self.start_of_reader(weight, position).double()
        layer = self._subnet.layers[position]
        if weight.in_layer:
            matrix = self._slice_of_teacher(weight, 0, position).double()
            bias = self.tensors.get(_bias(weight).format(layer=position))
        else:  # the output matrix
            matrix, bias = self.teacher.weight(weight.name).double(), None
        if bias is None and self.basis.up is None:
            assert moments is not None
            found, shift = self._fit_without_bias(matrix, moments, start, layer, weight)
            self.tensors[f"{weight.norm}.bias".format(layer=position)] += shift
        else:
            found = start if moments is None else self._fit(moments, start, layer, weight).weight
            found = self._without_constant(found, matrix, weight, position, bias)
        self.tensors[weight.name.format(layer=position)].copy_(matrix @ found)

    def _without_constant(
        self, found: torch.Tensor, matrix: torch.Tensor, weight: Weight, position: int, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Move the last column of a map `(D, d + 1)`, its constant, into a reader's bias or the norm before it."""
        if bias is None:  # the norm's output has mean 0, so its mean can carry the constant
            self.tensors[f"{weight.norm}.bias".format(layer=position)].fill_(1)
            return _constant_by_mean(found)
        own = self.teacher.weight(_bias(weight), self._subnet.layers[position])
        bias.copy_(take(own, 0, self._rows(weight, 0, position)).double() + matrix @ found[:, -1])
        return found[:, :-1]

    def _fit_without_bias(
        self, matrix: torch.Tensor, moments: Moments, start: torch.Tensor, layer: int, weight: Weight
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit a reader that has no bias: the map to the teacher's hidden states, and a shift of the norm before it.

        The shift gives a constant only as far as the matrix passes it on; it is then part of the features.
        """
        free = moments.fit(start, self.ridges).weight
        shift = _shift(matrix @ free[:, :-1], matrix @ free[:, -1])
        identity = torch.eye(len(shift), dtype=shift.dtype, device=shift.device)
        fits = []
        for added in (shift, torch.zeros_like(shift)):
            features = torch.cat([identity, added[:, None]], 1)
            fits.append((moments.mapped(features).fit(start[:, :-1], self.ridges), added))
        fit, added = min(fits, key=lambda pair: pair[0].after)
        self._record(fit, layer, weight)
        return fit.weight, added.float()

    # Writers: matrices whose output is added to the hidden states

    def heal_writers(self, weights: Sequence[Weight], position: int, moments: Moments) -> None:
        """Fit together the matrices of a layer that add to its hidden states.

        Args:
            weights (`Sequence[Weight]`): the matrices.
            position (`int`): their layer among the kept ones.
            moments (`Moments`): their inputs, concatenated, and 1 if there is a bias, as features; the sum they are to
                add to the student's hidden states as targets.
        """
        start = self.matrix(weights, position).double()
        fit = self._fit(moments, start, self._subnet.layers[position], *weights)
        if fit.ridge is None:
            return
        first = 0
        for weight in weights:
            matrix = self.tensors[weight.name.format(layer=position)]
            matrix.copy_(fit.weight[:, first : first + matrix.shape[1]])
            first += matrix.shape[1]
        for number, bias in enumerate(self.biases(weights, position)):  # the first carries the sum
            bias.copy_(fit.weight[:, -1]) if number == 0 else bias.zero_()

    def matrix(self, weights: Sequence[Weight], position: int) -> torch.Tensor:
        """Writers of a layer side by side, then the sum of their biases, if there are any, as a column."""
        return _side_by_side(self.tensors, weights, position)

    def matrix_of_teacher(self, weights: Sequence[Weight], layer: int) -> torch.Tensor:
        """The same columns of the super-network's layer, in single precision."""
        return _side_by_side(self.teacher.weights, weights, layer).to(self.teacher.device, torch.float32)

    def biases(self, weights: Sequence[Weight], position: int) -> list[torch.Tensor]:
        return _biases(self.tensors, weights, position)

    def _fit(self, moments: Moments, start: torch.Tensor, layer: int, *weights: Weight) -> Fit:
        fit = moments.fit(start, self.ridges)
        self._record(fit, layer, *weights)
        return fit

    def _record(self, fit: Fit, layer: int, *weights: Weight) -> None:
        names = " and ".join(weight.name.removesuffix(".weight").format(layer=layer) for weight in weights)
        self.fits.append({"weights": names, "ridge": fit.ridge, "before": fit.before, "after": fit.after})


def _bias(weight: Weight) -> str:
    return weight.name.removesuffix("weight") + "bias"


def _biases(tensors: Mapping[str, torch.Tensor], weights: Sequence[Weight], layer: int) -> list[torch.Tensor]:
    names = [_bias(weight).format(layer=layer) for weight in weights]
    return [tensors[name] for name in names if name in tensors]


def _side_by_side(tensors: Mapping[str, torch.Tensor], weights: Sequence[Weight], layer: int) -> torch.Tensor:
    biases = _biases(tensors, weights, layer)
    matrices = [tensors[weight.name.format(layer=layer)] for weight in weights]
    return torch.cat([*matrices, *([torch.stack(biases).sum(0)[:, None]] if biases else [])], 1)


def _shift(matrix: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Least-squares shift of a norm's bias for which `matrix @ shift` is `constant`."""
    gram = matrix.T @ matrix
    gram.diagonal().add_(1e-6 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return torch.linalg.solve(gram, matrix.T @ constant)


def _constant_by_mean(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix `(D, d)` that maps features of mean 0, plus 1 each, as `matrix` `(D, d + 1)` maps features and a 1."""
    features, constant = matrix[:, :-1], matrix[:, -1:]
    return features - features.mean(1, keepdim=True) + constant / features.shape[1]
