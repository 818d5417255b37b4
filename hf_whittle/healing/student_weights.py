"""The weights of a student on their way from sliced to healed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..models.architecture import Dimension, Weight, get_architecture, head_dim
from ..models.elastic import take
from ..models.supernet import axis_rows
from ..models.weights import embedding
from ..subnet import SubnetConfig, count
from .parts import Basis, output_matrix
from .regression import Fit, Moments

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class StudentWeights:
    """A student's weights in single precision, and what changes them. They are changed in place.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the super-network, under the names of the table.
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): what the student keeps.
        sliced (`Mapping[str, torch.Tensor]`): its weights as they were cut; copied.
        ridges (`Sequence[float]`): strengths that each regression chooses from.
        device (`torch.device`): where they are.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        config: "PreTrainedConfig",
        subnet: SubnetConfig,
        sliced: Mapping[str, torch.Tensor],
        ridges: Sequence[float],
        device: torch.device,
    ):
        self.tensors = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in sliced.items()}
        self.fits: list[dict[str, Any]] = []
        self.basis = Basis.channels(subnet, config.hidden_size, device)
        self._weights, self._config, self._subnet, self._device = weights, config, subnet, device
        self.ridges = ridges

    @property
    def can_change_basis(self) -> bool:
        """Whether the stream may carry anything but channels: some are left out, and the output matrix is free."""
        return 1 < count(self._subnet.hidden_size) < self._config.hidden_size and (
            output_matrix(self._config) is not None
        )

    @property
    def embedding(self) -> torch.Tensor:
        return self.tensors[embedding(self._config).name]

    def of_teacher(self, name: str, layer: int = 0) -> torch.Tensor:
        return self._weights[name.format(layer=layer)].to(self._device, torch.float32)

    def change_basis(self, gram: torch.Tensor) -> None:
        """Let the stream carry principal components: embedding, norms and all that writes; readers follow.

        Args:
            gram (`torch.Tensor`): `(D, D)`, of the teacher's normalised stream.
        """
        self.basis = Basis.principal(gram, count(self._subnet.hidden_size))
        self.embedding.copy_(self.of_teacher(embedding(self._config).name) @ self.basis.down.T)
        table = get_architecture(self._config)
        for norm in {weight.norm for weight in table.weights if weight.norm is not None}:
            for position in range(len(self._subnet.layers)) if "{layer}" in norm else (0,):
                self.tensors[norm.format(layer=position) + ".weight"].fill_(1)
                self.tensors[norm.format(layer=position) + ".bias"].zero_()
        for weight in table.weights:
            if weight.in_layer and weight.is_matmul and weight.axes[0].dimension is Dimension.CHANNELS:
                for position, layer in enumerate(self._subnet.layers):
                    matrix = self._slice_of_teacher(weight, 1, position)
                    self.tensors[weight.name.format(layer=position)].copy_(self.basis.down @ matrix)
                    bias = self.tensors.get(_bias(weight).format(layer=position))
                    if bias is not None:
                        bias.copy_(self.basis.down @ self.of_teacher(_bias(weight), layer))

    def _slice_of_teacher(self, weight: Weight, axis: int, position: int) -> torch.Tensor:
        """A matrix of the super-network's, sliced along one of its axes."""
        chosen = axis_rows(weight.axes[axis], self._subnet, position, head_dim(self._config), self._device)
        return take(self.of_teacher(weight.name, self._subnet.layers[position]), axis, chosen)

    # Readers: what multiplies the output of a norm

    def normal_map(self, weight: Weight, position: int) -> torch.Tensor:
        """What takes the student's normalised stream to the teacher's before anything is fitted, `(D, d + 1)`.

        The last column is a constant. `position` is the reader's layer among the kept ones.
        """
        assert weight.norm is not None
        if self.basis.up is None:  # the student's norm is a slice of the teacher's
            return F.pad(self.basis.down.T, (0, 1))
        layer = self._subnet.layers[position]
        scale, shift = (self.of_teacher(f"{weight.norm}.{part}", layer) for part in ("weight", "bias"))
        return torch.cat([scale[:, None] * self.basis.up, shift[:, None]], 1)

    def heal_reader(self, weight: Weight, position: int, moments: Moments | None) -> None:
        """Fold what the student's normalised stream says about the teacher's into a matrix that reads it.

        Args:
            weight (`Weight`): a matrix of a layer, or the output matrix.
            position (`int`): its layer among the kept ones; the last for the output matrix.
            moments (`Moments`, *optional*): of the student's normalised stream and a constant as features, the
                teacher's as targets; without them, the basis alone is changed.
        """
        start = self.normal_map(weight, position).double()
        layer = self._subnet.layers[position]
        if weight.in_layer:
            matrix = self._slice_of_teacher(weight, 0, position).double()
        else:
            matrix = self.of_teacher(weight.name).double()
        bias = self.tensors.get(_bias(weight).format(layer=position)) if weight.in_layer else None
        if bias is None and self.basis.up is None:
            assert moments is not None
            found, shift = self._fit_without_bias(matrix, moments, start, layer, weight)
            self.tensors[f"{weight.norm}.bias".format(layer=position)] += shift
        else:
            found = start if moments is None else self._fit(moments, start, layer, weight).weight
            if bias is None:  # the norm's output has mean 0, so that its mean is free to bring the constant
                self.tensors[f"{weight.norm}.bias".format(layer=position)].fill_(1)
                found = _constant_by_mean(found)
            else:
                chosen = axis_rows(weight.axes[0], self._subnet, position, head_dim(self._config), self._device)
                bias.copy_(take(self.of_teacher(_bias(weight), layer), 0, chosen).double() + matrix @ found[:, -1])
                found = found[:, :-1]
        self.tensors[weight.name.format(layer=position)].copy_(matrix @ found)

    def _fit_without_bias(
        self, matrix: torch.Tensor, moments: Moments, start: torch.Tensor, layer: int, weight: Weight
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The map to the teacher's state for a matrix without a bias, and what the norm before it must add for that.

        A norm reaches a constant only as far as the matrix lets it through; what it adds is then part of the features.
        """
        free = moments.fit(start, self.ridges).weight
        shift = _shift(matrix @ free[:, :-1], matrix @ free[:, -1])
        identity = torch.eye(len(shift), dtype=shift.dtype, device=shift.device)
        fits = []
        for added in (shift, torch.zeros_like(shift)):
            features = torch.cat([identity, added[:, None]], 1)
            fits.append((moments.mapped(features).fit(start[:, :-1], self.ridges), added))
        fit, added = min(fits, key=lambda pair: pair[0].after)
        self._note(fit, layer, weight)
        return fit.weight, added.float()

    # Writers: what adds to the stream

    def heal_writers(self, weights: Sequence[Weight], position: int, moments: Moments) -> None:
        """Fit the matrices that write to the stream together.

        Args:
            weights (`Sequence[Weight]`): matrices of a layer.
            position (`int`): the layer among the kept ones.
            moments (`Moments`): of their inputs, side by side, and a constant if there is a bias, as features; what
                they are to add to the student's stream as targets.
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
        for number, bias in enumerate(self.biases(weights, position)):  # one for all of them
            bias.copy_(fit.weight[:, -1]) if number == 0 else bias.zero_()

    def matrix(self, weights: Sequence[Weight], position: int) -> torch.Tensor:
        """Matrices that write to the stream, side by side, and the sum of their biases if there are any."""
        return _side_by_side(self.tensors, weights, position)

    def matrix_of_teacher(self, weights: Sequence[Weight], layer: int) -> torch.Tensor:
        """The same of the super-network."""
        return _side_by_side(self._weights, weights, layer).to(self._device, torch.float32)

    def biases(self, weights: Sequence[Weight], position: int) -> list[torch.Tensor]:
        return _biases(self.tensors, weights, position)

    def _fit(self, moments: Moments, start: torch.Tensor, layer: int, *weights: Weight) -> Fit:
        fit = moments.fit(start, self.ridges)
        self._note(fit, layer, *weights)
        return fit

    def _note(self, fit: Fit, layer: int, *weights: Weight) -> None:
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
    """What a norm must add for a matrix without a bias to add a constant, as nearly as that is possible."""
    gram = matrix.T @ matrix
    gram.diagonal().add_(1e-6 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return torch.linalg.solve(gram, matrix.T @ constant)


def _constant_by_mean(matrix: torch.Tensor) -> torch.Tensor:
    """What a matrix `(D, d + 1)` makes of `d` features of mean 0 and a constant, of the features plus 1, `(D, d)`."""
    features, constant = matrix[:, :-1], matrix[:, -1:]
    return features - features.mean(1, keepdim=True) + constant / features.shape[1]
