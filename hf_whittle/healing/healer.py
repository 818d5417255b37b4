"""Healing of one student, layer by layer."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace

import torch

from ..architectures.table import Weight
from ..compat.transformers import attention_kernel, set_attention_kernel
from ..errors import DataError
from ..evaluation import cross_entropy, perplexity
from ..evaluation.batches import batches_fit, tokens_at_a_time
from ..models.single_layer import Embedding, SingleLayer
from ..models.slicing import student_model
from ..models.source import Source
from ..models.student import student_config
from ..models.token_ids import student_ids
from ..progress import progress_bar
from ..subnet import SubnetConfig, count
from .config import HealingConfig, HealingReport, held_out_blocks
from .hidden_states import HiddenStatesFile, check_hidden_states
from .parts import (
    Projections,
    layer_after,
    module_of,
    normalized,
    output_matrix,
    projections,
)
from .regression import Moments, token_weights, with_constant
from .student_weights import StudentWeights


class Healer:
    """Heals one student, one layer after the other.

    Args:
        teacher (`Source`): the super-network.
        subnet (`SubnetConfig`): the student's.
        settings (`HealingConfig`): settings.
        input_ids (`torch.Tensor`): calibration text in the teacher's ids, `(blocks, block_size)`.

    Attributes:
        fitted, held_out: blocks that are fitted to, and those held out, in the student's ids.

    Raises:
        DataError: if there are fewer than two blocks.
        VocabularyError: if the text has a token that the student does not keep.
    """

    def __init__(self, teacher: Source, subnet: SubnetConfig, settings: HealingConfig, input_ids: torch.Tensor):
        if len(input_ids) < 2:
            raise DataError(
                f"healing fits to some blocks of text and is judged on others, got {len(input_ids)}; give 2 or more"
            )
        self._source, self._config, self._subnet = teacher, teacher.config, subnet
        self._settings = settings
        on_cpu = teacher.device.type == "cpu"
        self._batch_size = settings.batch_size or max(1, tokens_at_a_time(on_cpu) // input_ids.shape[1])
        self._groups = projections(self._config)
        self._student_config = student_config(self._config, subnet)
        set_attention_kernel(self._student_config, attention_kernel(self._config))
        self._input_ids = torch.cat(split_blocks(input_ids, settings.held_out))
        own_ids = student_ids(input_ids, subnet.vocab_size, self._config.vocab_size)
        self.fitted, self.held_out = split_blocks(own_ids, settings.held_out)
        blocks, length = self._input_ids.shape
        self._of_teacher = HiddenStatesFile((blocks, length, self._config.hidden_size), teacher.device)
        self._of_student = HiddenStatesFile((blocks, length, count(subnet.hidden_size)), teacher.device)

    @torch.no_grad()
    def heal(self, sliced: Mapping[str, torch.Tensor], progress: bool = False) -> StudentWeights:
        """Heal the student's weights.

        Args:
            sliced (`Mapping[str, torch.Tensor]`): its sliced weights; not changed.
            progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

        Raises:
            HealingError: if hidden states of the teacher or the student contain NaN or Inf.
        """
        copied = {name: tensor.to(torch.float32, copy=True) for name, tensor in sliced.items()}
        weights = StudentWeights(self._source, self._subnet, copied, self._settings.ridge)
        with closing(self._of_teacher), closing(self._of_student), batches_fit(self._batch_size):
            self._heal(weights, progress)
        return weights

    def _heal(self, weights: StudentWeights, progress: bool) -> None:
        if self._settings.basis == "principal" and weights.can_change_basis:
            weights.change_basis(self._gram_of_teacher())
        self._embed(self._of_teacher, self._source, self._input_ids)
        self._embed(self._of_student, self._student(weights), torch.cat([self.fitted, self.held_out]))
        layers = self._subnet.layers
        self._advance_teacher(0, layers[0])
        for position in progress_bar(range(len(layers)), desc="heal", unit="layer", disable=not progress):
            self._heal_layer(weights, position)
        self._heal_head(weights)

    def _student(self, weights: StudentWeights) -> Source:
        return replace(self._source, weights=weights.tensors, config=self._student_config)

    # Hidden states of teacher and student

    def _batches(self) -> Iterator[tuple[range, bool]]:
        """Ranges of blocks that are run together, and whether they are held out."""
        fitted, size = len(self.fitted), self._batch_size
        for start, end in ((0, fitted), (fitted, len(self._input_ids))):
            for first in range(start, end, size):
                yield range(first, min(first + size, end)), start > 0

    def _embed(self, hidden_states: HiddenStatesFile, model: Source, input_ids: torch.Tensor) -> None:
        embedding = Embedding(model)
        for blocks, _ in self._batches():
            hidden_states.write(blocks, embedding(input_ids[blocks.start : blocks.stop]))

    def _layer_of_teacher(self, index: int) -> SingleLayer:
        return SingleLayer(self._source, index, self._settings.bf16)

    def _layer_of_student(self, weights: StudentWeights, position: int) -> SingleLayer:
        return SingleLayer(self._student(weights), position, self._settings.bf16)

    def _advance_teacher(self, first: int, last: int) -> None:
        """Take the teacher's hidden states from before layer `first` to before layer `last`."""
        for index in range(first, last):
            layer = self._layer_of_teacher(index)
            for blocks, _ in self._batches():
                hidden_states = layer(self._of_teacher.read(blocks))
                check_hidden_states(hidden_states, "the teacher", index)
                self._of_teacher.write(blocks, hidden_states)
            del layer  # before the next one is read

    def _advance_student(self, weights: StudentWeights, position: int, features: HiddenStatesFile | None) -> None:
        """Take the student's hidden states to after a healed layer.

        Args:
            weights (`StudentWeights`): the student's.
            position (`int`): the layer among the kept ones.
            features (`HiddenStatesFile`, *optional*): inputs of the last writers, where the hidden states in the file
                are those before these writers; without it, the layer is run.
        """
        writers = self._groups[-1].writers
        student = None if features else self._layer_of_student(weights, position)
        matrix, constant = weights.matrix(writers, position), bool(weights.biases(writers, position))
        for blocks, _ in self._batches():
            before = self._of_student.read(blocks)
            if features is None:
                assert student is not None
                after = student(before)
            else:
                after = before + with_constant(features.read(blocks), constant) @ matrix.T
            check_hidden_states(after, "the student", self._subnet.layers[position])
            self._of_student.write(blocks, after)

    def _gram_of_teacher(self) -> torch.Tensor:
        """Gram matrix of the channels of the teacher's normalized hidden states where the student reads them."""
        self._embed(self._of_teacher, self._source, self._input_ids)
        size, done = self._config.hidden_size, 0
        gram = torch.zeros(size, size, dtype=torch.float64, device=self._source.device)
        for layer in (*self._subnet.layers, self._config.num_hidden_layers):
            self._advance_teacher(done, layer)
            done = layer
            for blocks, held_out in self._batches():
                if not held_out:
                    normal = normalized(self._of_teacher.read(blocks), self._config).flatten(0, -2)
                    gram += normal.T @ normal
        return gram

    # Steps

    def _heal_layer(self, weights: StudentWeights, position: int) -> None:
        index, settings = self._subnet.layers[position], self._settings
        student, teacher = self._layer_of_student(weights, position), self._layer_of_teacher(index)
        features = None
        for number, group in enumerate(self._groups):
            self._heal_readers(weights, student, teacher, group, position)
            if settings.outputs and group.is_normalized:
                for weight in group.writers:
                    self._heal_normalized_writer(weights, student, teacher, weight, position)
            is_last = number == len(self._groups) - 1
            if is_last:
                self._advance_teacher(index, layer_after(self._subnet, position, self._config.num_hidden_layers))
            if settings.outputs and not group.is_normalized:
                features = self._heal_writers(weights, student, None if is_last else teacher, number, position)
        self._advance_student(weights, position, features)
        if features is not None:
            features.close()

    def _heal_readers(
        self, weights: StudentWeights, student: SingleLayer, teacher: SingleLayer, group: Projections, position: int
    ) -> None:
        moments = {}
        if self._settings.inputs and weights.reads_other_states(position):
            moments = self._moments_of_readers(weights, student, teacher, group, position)
        if moments or weights.basis.up is not None:
            for readers in group.readers:
                weights.heal_readers(readers, position, moments.get(readers))

    def _moments_of_readers(
        self, weights: StudentWeights, student: SingleLayer, teacher: SingleLayer, group: Projections, position: int
    ) -> dict[tuple[Weight, ...], Moments]:
        """Gather the student's normalized hidden states as features and the teacher's as targets."""
        names = {readers: module_of(readers[0]) for readers in group.readers}
        moments = {readers: Moments(weights.has_constant(readers, position)) for readers in names}
        for blocks, held_out in self._batches():
            targets = teacher.recorded(self._of_teacher.read(blocks), names.values()).inputs
            features = student.recorded(self._of_student.read(blocks), names.values()).inputs
            for readers, name in names.items():
                check_hidden_states(targets[name], "the teacher", self._subnet.layers[position])
                check_hidden_states(features[name], "the student", self._subnet.layers[position])
                moments[readers].add(features[name], targets[name], held_out)
        return moments

    def _heal_writers(
        self, weights: StudentWeights, student: SingleLayer, teacher: SingleLayer | None, number: int, position: int
    ) -> HiddenStatesFile | None:
        """Heal the writers of a group, so that the hidden states after it are the teacher's.

        Targets are the hidden states after the same group of the layer `teacher`; without it, those before the next
        kept layer. For the last group of a layer, the student's hidden states go on to before these writers, and the
        file of the writers' inputs is returned.
        """
        writers = self._groups[number].writers
        names = [module_of(weight) for weight in writers]
        before = [module_of(weight) for group in self._groups[:number] for weight in group.writers]
        moments, file = Moments(constant=bool(weights.biases(writers, position))), None
        for blocks, held_out in self._batches():
            target, hidden_states = self._of_teacher.read(blocks), self._of_student.read(blocks)
            if teacher is not None:
                target = sum(teacher.recorded(target, outputs=[*names, *before]).outputs.values(), target)
            of_student = student.recorded(hidden_states, names, before)
            features = torch.cat([of_student.inputs[name] for name in names], -1)
            check_hidden_states(features, "the student", self._subnet.layers[position])
            reached = sum((of_student.outputs[name] for name in before), hidden_states)
            change = target @ weights.basis.down.T - reached
            moments.add(features, change, held_out, token_weights(target.square().mean(-1).sqrt()))
            if teacher is None:
                file = file or HiddenStatesFile((*self._input_ids.shape, features.shape[-1]), features.device)
                file.write(blocks, features)
                self._of_student.write(blocks, reached)
        weights.heal_writers(writers, position, moments)
        return file

    def _heal_normalized_writer(
        self, weights: StudentWeights, student: SingleLayer, teacher: SingleLayer, weight: Weight, position: int
    ) -> None:
        """Heal a writer whose output passes a norm, so that it writes to that norm as the same of the teacher does."""
        name, moments = module_of(weight), Moments(constant=bool(weights.biases([weight], position)))
        for blocks, held_out in self._batches():
            target = teacher.recorded(self._of_teacher.read(blocks), outputs=[name]).outputs[name]
            features = student.recorded(self._of_student.read(blocks), [name]).inputs[name]
            check_hidden_states(features, "the student", self._subnet.layers[position])
            token_weight = token_weights(target.square().mean(-1).sqrt())
            moments.add(features, target @ weights.basis.down.T, held_out, token_weight)
        weights.heal_writers([weight], position, moments)

    def _heal_head(self, weights: StudentWeights) -> None:
        matrix, last, settings = output_matrix(self._config), len(self._subnet.layers) - 1, self._settings
        if matrix is None or not (settings.head or weights.basis.up is not None):
            return
        moments = None
        if settings.head:
            assert matrix.norm is not None
            layers = self._layer_of_student(weights, last), self._layer_of_teacher(self._config.num_hidden_layers - 1)
            norm, norm_of_teacher = (layer.module(matrix.norm) for layer in layers)
            moments = Moments(weights.has_constant([matrix], last))
            for blocks, held_out in self._batches():
                of_student, of_teacher = self._of_student.read(blocks), self._of_teacher.read(blocks)
                moments.add(norm(of_student), norm_of_teacher(of_teacher), held_out)
        weights.heal_readers([matrix], last, moments)


def heal_weights(
    teacher: Source,
    subnet: SubnetConfig,
    sliced: Mapping[str, torch.Tensor],
    settings: HealingConfig,
    input_ids: torch.Tensor,
    progress: bool = False,
) -> tuple[Mapping[str, torch.Tensor], HealingReport]:
    """Heal a student's weights; they stay as sliced if that is no better on held-out text.

    Args:
        teacher (`Source`): the super-network.
        subnet (`SubnetConfig`): the student's.
        sliced (`Mapping[str, torch.Tensor]`): the student's sliced weights, in the precision it is judged in.
        settings (`HealingConfig`): settings.
        input_ids (`torch.Tensor`): calibration text in the teacher's ids, `(blocks, block_size)`.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        DataError: if there are fewer than two blocks.
        VocabularyError: if the text has a token that the student does not keep.
        HealingError: if hidden states of the teacher or the student contain NaN or Inf.
    """
    dtype = next(iter(sliced.values())).dtype
    healer = Healer(teacher, subnet, settings, input_ids)

    def judge(state_dict: Mapping[str, torch.Tensor]) -> float:
        student = student_model(teacher.config, subnet, state_dict, dtype).to(teacher.device)
        return perplexity(cross_entropy(student, healer.held_out, settings.batch_size))

    healed = healer.heal(sliced, progress)
    before, after = judge(sliced), judge(healed.tensors)
    report = HealingReport(
        is_healed=math.isfinite(after) and not after >= before,  # `before` may be NaN
        perplexity_before=before,
        perplexity_after=after,
        tokens=healer.fitted.numel(),
        held_out_tokens=healer.held_out.numel(),
        fits=healed.fits,
        settings=asdict(settings),
        basis="channels" if healed.basis.up is None else "principal",
    )
    return healed.tensors if report.is_healed else sliced, report


def split_blocks(input_ids: torch.Tensor, held_out: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Split blocks into those to fit to and those held out, at least one of each; the latter spread over the text."""
    number = held_out_blocks(len(input_ids), held_out)
    is_held_out = torch.zeros(len(input_ids), dtype=torch.bool)
    is_held_out[[(2 * i + 1) * len(input_ids) // (2 * number) for i in range(number)]] = True
    return input_ids[~is_held_out], input_ids[is_held_out]
