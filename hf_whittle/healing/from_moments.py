"""Healing of a student from moments of its super-network, without running either."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..architectures.registry import get_architecture
from ..architectures.table import Weight
from ..models.rows import KeptRows
from ..models.slicing import slice_weights, student_model
from ..models.source import Source
from ..subnet import SubnetConfig
from .parts import head_matrix, layer_after
from .regression import Moments
from .student_weights import StudentWeights
from .supernet_moments import SupernetMoments


@torch.no_grad()
def student_healed_from(
    moments: SupernetMoments, teacher: Source, subnet: SubnetConfig, ridge: float | None = None
) -> Any:
    """A subnet's healed student, in single precision.

    The student's hidden states are approximated by the super-network's in the student's basis, so that layers are
    healed independently of each other.

    Args:
        moments (`SupernetMoments`): moments of the super-network.
        teacher (`Source`): the super-network.
        subnet (`SubnetConfig`): the subnet.
        ridge (`float`, *optional*): strength of the regressions, relative to the mean square of each feature; by
            default, the likely one for the number of tokens.
    """
    sliced = slice_weights(teacher.weights, teacher.config, subnet, dtype=torch.float32)
    student = StudentWeights(teacher, subnet, sliced, None if ridge is None else [ridge])
    _Healing(moments, student, subnet).run()
    return student_model(teacher.config, subnet, student.tensors, torch.float32)


class _Healing:
    """Steps of healing one student, and the moments that its regressions need."""

    def __init__(self, moments: SupernetMoments, student: StudentWeights, subnet: SubnetConfig):
        self._moments, self._student, self._subnet = moments, student, subnet
        self._is_centered = get_architecture(moments.config).norms.kind == "layer"
        self._rows = KeptRows(moments.config, subnet)

    def run(self) -> None:
        student, moments = self._student, self._moments
        if student.can_change_basis:
            student.change_basis(self._gram())
        for position, layer in enumerate(self._subnet.layers):
            for number, group in enumerate(moments.groups):
                for readers in group.readers if student.reads_other_states(position) else ():
                    student.heal_readers(readers, position, self._of_readers(readers, position, layer))
                if group.is_normalized:
                    for weight in group.writers:
                        student.heal_writers([weight], position, self._of_normalized_writer(weight, position))
                else:
                    student.heal_writers(group.writers, position, self._of_writers(position, number))
        if moments.head is not None and student.lacks_channels:
            last, head = len(self._subnet.layers) - 1, [moments.head]
            student.heal_readers(head, last, self._of_readers(head, last, moments.layers[-1]))

    def _gram(self) -> torch.Tensor:
        """Gram matrix of the channels of the normalized hidden states where the student reads them."""
        moments = self._moments
        read = [(moments.readers[0][0].norm, layer) for layer in self._subnet.layers]
        read.append((head_matrix(moments.config).norm, moments.layers[-1]))
        return torch.stack([moments.normal[key].full()[:-1, :-1] for key in read]).sum(0)

    def _of_readers(self, weights: Sequence[Weight], position: int, layer: int) -> Moments:
        """Moments of normalized hidden states, and 1 for a constant: features of the student, targets of the teacher.

        The student's hidden states are approximated by the teacher's in its basis; at the first kept layer, they are
        the embedding.
        """
        student, norm = self._student, weights[0].norm
        normal, with_target = self._normal(weights[0], position, layer)
        scale, shift = (part.double() for part in student.norm_of_student(norm, position))
        scale_of_teacher, shift_of_teacher = (part.double() for part in student.norm_of_teacher(norm, layer))
        normalized = _normalized(student.basis.down.double(), normal, self._is_centered)
        features = torch.cat([scale[:, None] * normalized, shift[:, None]], 1)
        if student.has_constant(weights, position):
            features = F.pad(features, (0, 0, 0, 1))
            features[-1, -1] = 1
        targets = torch.cat([scale_of_teacher.diag(), shift_of_teacher[:, None]], 1)
        return self._known(features @ normal @ features.T, targets @ with_target @ features.T)

    def _normal(self, weight: Weight, position: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments of the normalized hidden states that approximate the student's, alone and with the teacher's."""
        moments = self._moments
        if position == 0 and layer > 0 and weight.in_layer:  # only the embedding comes before it
            normal = moments.normal[moments.readers[0][0].norm, 0].full()
            return normal.double(), moments.from_embedding(layer)[1][weight.norm].double()
        normal = moments.normal[weight.norm, layer].full().double()
        return normal, normal

    def _of_writers(self, position: int, number: int) -> Moments:
        """Moments of the kept inputs of a group's writers as features, and of their output-to-be as targets.

        Together with the groups before it, which are healed by then, a group is to write the output of these groups of
        the super-network. The last group of a layer is to write everything until the next kept layer. The first kept
        layer is also to write the output of the layers before it.
        """
        student, moments, layer = self._student, self._moments, self._subnet.layers[position]
        *before, group = moments.groups[: number + 1]
        features, chosen = moments.features[layer], self._chosen(position, group.writers)
        down = student.basis.down.double()
        if group is moments.groups[-1]:
            written = moments.change(layer, layer_after(self._subnet, position, len(moments.layers)), chosen)
            if position == 0 and layer > 0:
                written = written + moments.from_embedding(layer)[0][:, chosen]
            left = down @ written.double()
        else:
            writers = [weight for each in (*before, group) for weight in each.writers]
            left = down @ moments.written(layer, writers, chosen).double()
            if position == 0 and layer > 0:
                left += self._share_of_before(chosen).double() @ features(chosen, chosen).double()
        for other in before:
            others = self._chosen(position, other.writers)
            left -= student.matrix(other.writers, position).double() @ features(others, chosen).double()
        return self._known(features(chosen, chosen), left)

    def _of_normalized_writer(self, weight: Weight, position: int) -> Moments:
        """Moments of the kept inputs of a writer that a norm follows as features, and of its own output as targets."""
        layer, chosen = self._subnet.layers[position], self._chosen(position, [weight])
        written = self._moments.written(layer, [weight], chosen)
        down = self._student.basis.down.double()
        return self._known(self._moments.features[layer](chosen, chosen), down @ written.double())

    def _known(self, gram: torch.Tensor, cross: torch.Tensor) -> Moments:
        return Moments.known(gram, cross, self._moments.tokens)

    def _share_of_before(self, chosen: torch.Tensor) -> torch.Tensor:
        """Columns of the chosen features in a fit of all features to the output before the first kept layer."""
        moments, layer = self._moments, self._subnet.layers[0]
        every = self._chosen(0, moments.writers)
        written = self._student.basis.down.double() @ moments.from_embedding(layer)[0][:, every].double()
        known = self._known(moments.features[layer](every, every), written)
        return known.fit(torch.zeros_like(written), self._student.ridges).weight[:, torch.isin(every, chosen)]

    def _chosen(self, position: int, weights: Sequence[Weight]) -> torch.Tensor:
        """Indices, among a layer's features, of the kept inputs of some writers, and of 1 if they have a bias."""
        return self._moments.chosen(
            self._subnet.layers[position], weights, lambda weight: self._rows(weight.inputs, position)
        )


def _normalized(down: torch.Tensor, normal: torch.Tensor, is_centered: bool) -> torch.Tensor:
    """Map `(d, D)` from normalized hidden states of the teacher to those of the student.

    Args:
        down (`torch.Tensor`): `(d, D)`, basis of the student's hidden states.
        normal (`torch.Tensor`): `(D + 1, D + 1)`, moments of the teacher's normalized hidden states and 1.
        is_centered (`bool`): whether norms subtract the mean.
    """
    tokens = normal[-1, -1]
    if is_centered:
        down = down - down.mean(0)
    square = ((down @ normal[:-1, :-1]) * down).sum() / len(down) / tokens
    square += 1 - normal.diagonal()[:-1].mean() / tokens  # the same share of eps as in the teacher's mean square
    return down / square.sqrt()
