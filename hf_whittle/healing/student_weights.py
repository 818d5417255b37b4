"""Weights of a student while they are healed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..architectures.registry import get_architecture
from ..architectures.table import Axis, Weight
from ..models.elastic import take
from ..models.rows import KeptRows
from ..models.source import Source
from ..subnet import SubnetConfig, count
from .parts import (
    Basis,
    as_matrix,
    bias_of,
    biases_of,
    can_change_basis,
    head_matrix,
    output_matrix,
    projections,
    scale_of_last_norm,
    side_by_side,
)
from .regression import Fit, Moments


class StudentWeights:
    """Weights of a student in single precision, and the steps that change them in place.

    Args:
        teacher (`Source`): the super-network.
        subnet (`SubnetConfig`): the student's.
        sliced (`Mapping[str, torch.Tensor]`): the student's sliced weights; changed in place if in single precision.
        ridges (`Sequence[float]`, *optional*): strengths that each regression chooses from; any by default.
    """

    def __init__(
        self,
        teacher: Source,
        subnet: SubnetConfig,
        sliced: Mapping[str, torch.Tensor],
        ridges: Sequence[float] | None = None,
    ):
        self.tensors = {name: tensor.to(teacher.device, torch.float32) for name, tensor in sliced.items()}
        self.fits: list[dict[str, Any]] = []
        self.basis = Basis.channels(subnet, teacher.config.hidden_size, teacher.device)
        self.teacher, self.ridges = teacher, ridges
        self._subnet, self._table = subnet, get_architecture(teacher.config)
        self._rows = KeptRows(teacher.config, subnet)

    @property
    def lacks_channels(self) -> bool:
        """Whether some channels are left out."""
        return count(self._subnet.hidden_size) < self.teacher.config.hidden_size

    def reads_other_states(self, position: int) -> bool:
        """Whether readers have something to predict: channels are left out, or all layers before them."""
        return self.lacks_channels or (position == 0 and self._subnet.layers[0] > 0)

    @property
    def can_change_basis(self) -> bool:
        """Whether the basis is free, and some channels are left out."""
        return can_change_basis(self.teacher, count(self._subnet.hidden_size))

    def change_basis(self, gram: torch.Tensor) -> None:
        """Change the basis to principal components: embeddings, norms and writers now, readers in `heal_readers`.

        Args:
            gram (`torch.Tensor`): `(D, D)`, Gram matrix of the channels of the teacher's normalized hidden states.
        """
        size, norms = count(self._subnet.hidden_size), self._table.norms
        is_tied = output_matrix(self.teacher.config) is None
        if is_tied:
            self.basis = Basis.tied(gram, size, scale_of_last_norm(self.teacher))
        else:
            self.basis = Basis.principal(gram, size, is_centered=norms.kind == "layer")
        for weight in self._table.weights:
            if not weight.in_layer and not weight.is_matmul and len(weight.axes) > 1:  # embeddings
                rows = take(self.teacher.weight(weight.name), 0, self._rows(weight.axes[0], 0, self.teacher.device))
                self.tensors[weight.name].copy_(rows @ self.basis.down.T)
        for norm in {weight.norm for weight in self._table.weights if weight.norm is not None}:
            for position in range(len(self._subnet.layers)) if "{layer}" in norm else (0,):
                for part, value in (("weight", norms.neutral), ("bias", 0)):
                    if (tensor := self._of_norm(norm, part, position)) is not None:
                        tensor.fill_(value)
        if is_tied:
            self._change_basis_of_tied_head()
        for group in projections(self.teacher.config):
            for weight in group.writers:
                for position, layer in enumerate(self._subnet.layers):
                    self._change_basis_of_writer(weight, position, layer)

    def _change_basis_of_tied_head(self) -> None:
        """Give the last norm the weight with which the new embedding reads what the teacher's does."""
        down, up = self.basis.down, self.basis.up
        weight = self._of_norm(head_matrix(self.teacher.config).norm, "weight", 0)
        assert weight is not None and up is not None
        read = scale_of_last_norm(self.teacher) * up.T  # `(d, D)`: each row is a multiple of the same row of `down`
        weight.copy_((down * read).sum(1) / down.square().sum(1) - self._table.norms.offset)

    def _change_basis_of_writer(self, weight: Weight, position: int, layer: int) -> None:
        self._own(weight, position).copy_(self.basis.down @ self._slice_of_teacher(weight, weight.inputs, position))
        bias = self._bias(weight, position)
        if bias is not None:
            bias.copy_(self.basis.down @ self.teacher.weight(bias_of(weight), layer))

    def _own(self, weight: Weight, position: int) -> torch.Tensor:
        """A view of a matrix of the student as `(outputs, inputs)`."""
        return as_matrix(weight, self.tensors[weight.name.format(layer=position)])

    def _bias(self, weight: Weight, position: int) -> torch.Tensor | None:
        return self.tensors.get(bias_of(weight).format(layer=position))

    def _of_norm(self, norm: str | None, part: str, position: int) -> torch.Tensor | None:
        """The weight or the bias of a norm of the student, if it has one."""
        return self.tensors.get(f"{norm}.{part}".format(layer=position))

    def _slice_of_teacher(self, weight: Weight, axis: Axis, position: int) -> torch.Tensor:
        """A matrix `(outputs, inputs)` of the super-network, sliced along one axis."""
        matrix = as_matrix(weight, self.teacher.weight(weight.name, self._subnet.layers[position]))
        return take(matrix, 0 if axis is weight.outputs else 1, self._rows(axis, position, self.teacher.device))

    # Readers: matrices that multiply the output of a norm

    def has_constant(self, weights: Sequence[Weight], position: int) -> bool:
        """Whether readers of the same norm can add a constant: they have biases, or the norm has one."""
        own, of_norm = self._bias(weights[0], position), self._of_norm(weights[0].norm, "bias", position)
        return own is not None or of_norm is not None

    def start_of_readers(self, weights: Sequence[Weight], position: int) -> torch.Tensor:
        """Map from the student's normalized hidden states, and 1 if there is a constant, to the teacher's.

        Args:
            weights (`Sequence[Weight]`): readers of the same norm.
            position (`int`): their layer among the kept ones.

        Returns:
            `torch.Tensor`: `(D, d + 1)` or, without a constant, `(D, d)`; before a fit.
        """
        assert weights[0].norm is not None
        start = self.basis.down.T  # where channels are kept, the student's norm is a slice of the teacher's
        scale, shift = self.norm_of_teacher(weights[0].norm, self._subnet.layers[position])
        if self.basis.up is None:
            shift = torch.zeros_like(shift)
        else:
            start = scale[:, None] * self.basis.up
        return torch.cat([start, shift[:, None]], 1) if self.has_constant(weights, position) else start

    def norm_of_student(self, norm: str | None, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a norm of the student multiplies with, and what it adds."""
        weight, bias = (self._of_norm(norm, part, position) for part in _NORM)
        return self._effective(self.basis.down[:, 0], weight, bias)

    def norm_of_teacher(self, norm: str | None, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a norm of the super-network multiplies with, and what it adds."""
        weight, bias = (
            None if self._of_norm(norm, part, 0) is None else self.teacher.weight(f"{norm}.{part}", layer)
            for part in _NORM
        )
        return self._effective(self.basis.down[0], weight, bias)

    def _effective(
        self, like: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.ones_like(like) if weight is None else weight + self._table.norms.offset
        return scale, torch.zeros_like(like) if bias is None else bias

    def heal_readers(self, weights: Sequence[Weight], position: int, moments: Moments | None) -> None:
        """Fold a prediction of the teacher's normalized hidden states into matrices that read the student's.

        Args:
            weights (`Sequence[Weight]`): matrices of a layer that read the same norm and all have a bias or all have
                none; or the output matrix.
            position (`int`): their layer among the kept ones; the last for the output matrix.
            moments (`Moments`, *optional*): the student's normalized hidden states, and 1 if there `has_constant`, as
                features, the teacher's as targets; without them, only the basis is changed.
        """
        start = self.start_of_readers(weights, position).double()
        matrices = [self._slice_of_teacher(weight, weight.outputs, position).double() for weight in weights]
        norm_bias = self._of_norm(weights[0].norm, "bias", position)
        has_biases = self._bias(weights[0], position) is not None
        if has_biases or norm_bias is None or self.basis.up is not None:
            layer = self._subnet.layers[position]
            found = start if moments is None else self._fit(moments, start, layer, *weights).weight
            if norm_bias is not None and not has_biases:  # the norm's output has mean 0: its mean carries the constant
                norm_bias.fill_(1)
                found = _constant_by_mean(found)
        else:
            assert moments is not None
            found, shift = self._fit_without_bias(torch.cat(matrices), moments, start, position, weights)
            norm_bias += shift
        for weight, matrix in zip(weights, matrices, strict=True):
            self._fold(found, weight, matrix, position)

    def _fold(self, found: torch.Tensor, weight: Weight, matrix: torch.Tensor, position: int) -> None:
        """Fold a map `(D, d)`, or `(D, d + 1)` with a constant, into a reader `(outputs, D)` and its bias."""
        own, bias = self._own(weight, position), self._bias(weight, position)
        own.copy_(matrix @ found[:, : own.shape[1]])
        if bias is not None:
            of_teacher = self.teacher.weight(bias_of(weight), self._subnet.layers[position])
            rows = self._rows(weight.outputs, position, self.teacher.device)
            bias.copy_(take(of_teacher, 0, rows).double() + matrix @ found[:, -1])

    def _fit_without_bias(
        self, matrix: torch.Tensor, moments: Moments, start: torch.Tensor, position: int, weights: Sequence[Weight]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit readers that have no bias: the map to the teacher's hidden states, and a shift of the norm before them.

        The shift gives a constant only as far as the matrices pass it on; it is then part of the features.
        """
        free = moments.fit(start, self.ridges)
        shift = _shift(matrix @ free.weight[:, :-1], matrix @ free.weight[:, -1])
        identity = torch.eye(len(shift), dtype=shift.dtype, device=shift.device)
        fits = []
        for added in (shift, torch.zeros_like(shift)):
            features = torch.cat([identity, added[:, None]], 1)
            fits.append((moments.mapped(features).fit(start[:, :-1], self.ridges), added))
        best, added = min(fits, key=lambda pair: pair[0].after)
        fit = replace(best, tried=free.tried + sum(each.tried for each, _ in fits))
        self._record(fit, self._subnet.layers[position], *weights)
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
            matrix = self._own(weight, position)
            matrix.copy_(fit.weight[:, first : first + matrix.shape[1]])
            first += matrix.shape[1]
        for number, bias in enumerate(self.biases(weights, position)):  # the first carries the sum
            bias.copy_(fit.weight[:, -1]) if number == 0 else bias.zero_()

    def matrix(self, weights: Sequence[Weight], position: int) -> torch.Tensor:
        """Writers of a layer as `side_by_side` puts them."""
        return side_by_side(self.tensors, weights, position)

    def biases(self, weights: Sequence[Weight], position: int) -> list[torch.Tensor]:
        return biases_of(self.tensors, weights, position)

    def _fit(self, moments: Moments, start: torch.Tensor, layer: int, *weights: Weight) -> Fit:
        fit = moments.fit(start, self.ridges)
        self._record(fit, layer, *weights)
        return fit

    def _record(self, fit: Fit, layer: int, *weights: Weight) -> None:
        names = " and ".join(weight.name.removesuffix(".weight").format(layer=layer) for weight in weights)
        self.fits.append({"weights": names, **{name: getattr(fit, name) for name in _REPORTED}})


_NORM = ("weight", "bias")
_REPORTED = ("ridge", "before", "after", "tried")


def _shift(matrix: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Least-squares shift of a norm's bias for which `matrix @ shift` is `constant`."""
    gram = matrix.T @ matrix
    gram.diagonal().add_(1e-6 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return torch.linalg.solve(gram, matrix.T @ constant)


def _constant_by_mean(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix `(D, d)` that maps features of mean 0, plus 1 each, as `matrix` `(D, d + 1)` maps features and a 1."""
    features, constant = matrix[:, :-1], matrix[:, -1:]
    return features - features.mean(1, keepdim=True) + constant / features.shape[1]
