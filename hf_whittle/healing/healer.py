"""Heal a student, layer by layer."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..compat import attention_kernel, set_attention_kernel
from ..errors import DataError, HealingError
from ..evaluation import cross_entropy, perplexity
from ..files.disk import disk_errors
from ..models.architecture import Weight, architecture_module
from ..models.single_layer import Pass, SingleLayer
from ..models.slicing import student_model
from ..models.weights import embedding
from ..subnet import SubnetConfig, count
from .config import HealingConfig, HealingReport
from .parts import Basis, Projections, layer_after, module_of, output_matrix, projections
from .regression import Moments
from .student_weights import StudentWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Healer:
    """Heals one student, on what it computes with the layers before already healed.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the super-network, under the names of the table.
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): what the student keeps.
        input_ids (`torch.Tensor`): calibration text, `(blocks, block_size)`.
        settings (`HealingConfig`): how.
        device (`torch.device`): where layers run.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        config: "PreTrainedConfig",
        subnet: SubnetConfig,
        input_ids: torch.Tensor,
        settings: HealingConfig,
        device: torch.device,
    ):
        if len(input_ids) < 2:
            raise DataError(
                f"healing fits to some blocks of text and is judged on others, got {len(input_ids)}; give 2 or more"
            )
        self._weights, self._config, self._subnet = weights, config, subnet
        self._student_config = architecture_module(config, "student").student_config(config, subnet)
        set_attention_kernel(self._student_config, attention_kernel(config))
        self._settings, self._device = settings, device
        self.fitted, self.held_out = split_blocks(input_ids, settings.held_out)
        self._input_ids = torch.cat([self.fitted, self.held_out])
        blocks, length = self._input_ids.shape
        self._teacher = _Stream((blocks, length, config.hidden_size), device)
        self._student = _Stream((blocks, length, count(subnet.hidden_size)), device)

    @torch.no_grad()
    def heal(self, sliced: Mapping[str, torch.Tensor], progress: bool = False) -> StudentWeights:
        """Heal the student's weights.

        Args:
            sliced (`Mapping[str, torch.Tensor]`): its weights as they were cut; left as they are.
            progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

        Raises:
            HealingError: if the teacher or the student computes what is not a number.
        """
        ridges = self._settings.ridge
        student = StudentWeights(self._weights, self._config, self._subnet, sliced, ridges, self._device)
        with closing(self._teacher), closing(self._student):
            self._heal(student, progress)
        return student

    def _heal(self, student: StudentWeights, progress: bool) -> None:
        embedded = student.of_teacher(embedding(self._config).name)
        if self._settings.basis == "principal" and student.can_change_basis:
            student.change_basis(self._gram_of_teacher(embedded))
        self._embed(self._teacher, embedded)
        del embedded
        self._embed(self._student, student.embedding)
        layers = self._subnet.layers
        self._advance_teacher(0, layers[0])
        for position in tqdm(range(len(layers)), desc="heal", unit="layer", disable=not progress):
            self._heal_layer(student, position)
        self._heal_head(student)

    # The two streams

    def _batches(self) -> Iterator[tuple[range, bool]]:
        """Blocks to read at a time, and whether they are held out."""
        fitted, size = len(self.fitted), self._settings.batch_size
        for start, end in ((0, fitted), (fitted, len(self._input_ids))):
            for first in range(start, end, size):
                yield range(first, min(first + size, end)), start > 0

    def _embed(self, stream: "_Stream", embedding: torch.Tensor) -> None:
        for blocks, _ in self._batches():
            input_ids = self._input_ids[blocks.start : blocks.stop].to(self._device)
            stream.write(blocks, F.embedding(input_ids, embedding))

    def _layer_of_teacher(self, layer: int) -> SingleLayer:
        return SingleLayer(self._weights, self._config, layer, self._device)

    def _advance_teacher(self, first: int, last: int) -> None:
        """Take the teacher's stream from before layer `first` to before layer `last`."""
        for index in range(first, last):
            layer = self._layer_of_teacher(index)
            for blocks, _ in self._batches():
                stream = layer(self._teacher.read(blocks)).stream
                _check(stream, "the teacher", index)
                self._teacher.write(blocks, stream)
            del layer  # before the next one is read

    def _run_student(self, layer: SingleLayer, position: int, blocks: range, watched: Iterable[str] = ()) -> Pass:
        done = layer(self._student.read(blocks), watched)
        _check(done.stream, "the student", self._subnet.layers[position])
        return done

    def _gram_of_teacher(self, embedding: torch.Tensor) -> torch.Tensor:
        """Products of channels of the teacher's normalised stream where the student reads it."""
        self._embed(self._teacher, embedding)
        size, done = self._config.hidden_size, 0
        gram = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        for layer in (*self._subnet.layers, self._config.num_hidden_layers):
            self._advance_teacher(done, layer)
            done = layer
            for blocks, held_out in self._batches():
                if not held_out:
                    normal = F.layer_norm(self._teacher.read(blocks), (size,)).flatten(0, -2)
                    gram += normal.T @ normal
        return gram

    # What is healed

    def _heal_layer(self, weights: StudentWeights, position: int) -> None:
        index, after = (
            self._subnet.layers[position],
            layer_after(self._subnet, position, self._config.num_hidden_layers),
        )
        student = SingleLayer(weights.tensors, self._student_config, position, self._device)
        teacher = self._layer_of_teacher(index)
        groups = projections(self._config)
        for number, group in enumerate(groups):
            moments = self._of_readers(student, teacher, group, position) if self._settings.inputs else {}
            if moments or weights.basis.up is not None:
                for weight in group.readers:
                    weights.heal_reader(weight, position, moments.get(weight))
            is_last = number == len(groups) - 1
            if is_last:
                self._advance_teacher(index, after)
            if self._settings.outputs:
                has_bias = bool(weights.biases(group.writers, position))
                found = self._of_writers(
                    student, None if is_last else teacher, groups[: number + 1], weights.basis, has_bias, position
                )
                weights.heal_writers(group.writers, position, found)
        is_final = position + 1 == len(self._subnet.layers)  # then what the output matrix reads
        for blocks, _ in self._batches():
            done = self._run_student(student, position, blocks)
            self._student.write(blocks, done.final if is_final else done.stream)

    def _of_readers(
        self, student: SingleLayer, teacher: SingleLayer, group: Projections, position: int
    ) -> dict[Weight, Moments]:
        """For each matrix that reads the stream: the student's normalised stream, and the teacher's as target."""
        names = {weight: module_of(weight) for weight in group.readers}
        moments = {weight: Moments(constant=True) for weight in names}
        for blocks, held_out in self._batches():
            of_teacher = teacher(self._teacher.read(blocks), names.values())
            _check(of_teacher.stream, "the teacher", self._subnet.layers[position])
            of_student = self._run_student(student, position, blocks, names.values())
            for weight, name in names.items():
                moments[weight].add(of_student.inputs[name], of_teacher.inputs[name], held_out)
        return moments

    def _of_writers(
        self,
        student: SingleLayer,
        teacher: SingleLayer | None,
        groups: Sequence[Projections],
        basis: Basis,
        constant: bool,
        position: int,
    ) -> Moments:
        """The inputs of what the last of the groups writes; as target, what the student's stream then lacks.

        The stream is to be the teacher's after these groups of its layer or, without `teacher`, where it stands.
        """
        names = [module_of(weight) for weight in groups[-1].writers]
        before = [module_of(weight) for group in groups[:-1] for weight in group.writers]
        moments = Moments(constant)
        for blocks, held_out in self._batches():
            target = self._teacher.read(blocks)
            if teacher is not None:
                of_teacher = teacher(target, [*names, *before])
                target = sum(of_teacher.outputs.values(), target)
            of_student = self._run_student(student, position, blocks, [*names, *before])
            written = sum((of_student.outputs[name] for name in before), self._student.read(blocks))
            features = torch.cat([of_student.inputs[name] for name in names], -1)
            moments.add(features, target @ basis.down.T - written, held_out)
        return moments

    def _heal_head(self, weights: StudentWeights) -> None:
        matrix, last = output_matrix(self._config), len(self._subnet.layers) - 1
        if matrix is None or not (self._settings.head or weights.basis.up is not None):
            return
        moments = None
        if self._settings.head:
            assert matrix.norm is not None
            norm = self._layer_of_teacher(self._config.num_hidden_layers - 1).module(matrix.norm)
            moments = Moments(constant=True)
            for blocks, held_out in self._batches():
                moments.add(self._student.read(blocks), norm(self._teacher.read(blocks)), held_out)
        weights.heal_reader(matrix, last, moments)


def heal_weights(
    weights: Mapping[str, torch.Tensor],
    config: "PreTrainedConfig",
    subnet: SubnetConfig,
    sliced: Mapping[str, torch.Tensor],
    input_ids: torch.Tensor,
    settings: HealingConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool = False,
) -> tuple[Mapping[str, torch.Tensor], HealingReport]:
    """Heal a student's weights; where that is no better on held-out text, they stay as they were sliced.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the super-network, under the names of the table.
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): what the student keeps.
        sliced (`Mapping[str, torch.Tensor]`): the student's weights as they were cut.
        input_ids (`torch.Tensor`): calibration text, `(blocks, block_size)`.
        settings (`HealingConfig`): how.
        dtype (`torch.dtype`): the student's, in which it is judged.
        device (`torch.device`): where layers run.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        DataError: if there are fewer than two blocks.
        HealingError: if the teacher or the student computes what is not a number.
    """
    healer = Healer(weights, config, subnet, input_ids, settings, device)
    healed = healer.heal(sliced, progress)

    def judge(state_dict: Mapping[str, torch.Tensor]) -> float:
        student = student_model(config, subnet, state_dict, dtype).to(device)
        return perplexity(cross_entropy(student, healer.held_out, settings.batch_size))

    before, after = judge(sliced), judge(healed.tensors)
    report = HealingReport(
        is_healed=math.isfinite(after) and not after >= before,  # before may be no number
        perplexity_before=before,
        perplexity_after=after,
        tokens=healer.fitted.numel(),
        held_out_tokens=healer.held_out.numel(),
        fits=healed.fits,
        settings=asdict(settings),
    )
    return (healed.tensors if report.is_healed else sliced), report


def split_blocks(input_ids: torch.Tensor, held_out: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks to fit to and blocks held out, at least one of each, spread over the text."""
    number = min(max(1, round(held_out * len(input_ids))), len(input_ids) - 1)
    is_held_out = torch.zeros(len(input_ids), dtype=torch.bool)
    is_held_out[[(2 * i + 1) * len(input_ids) // (2 * number) for i in range(number)]] = True
    return input_ids[~is_held_out], input_ids[is_held_out]


def _check(stream: torch.Tensor, whose: str, layer: int) -> None:
    if not torch.isfinite(stream).all():
        raise HealingError(
            f"{whose} computes values that are not finite in layer {layer}; use a teacher whose weights are whole, and "
            "calibration text it was made for"
        )


class _Stream:
    """A stream `(B, T, channels)` in a file, so that memory does not grow with the number of tokens."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        self._shape, self._device = shape, device
        self._file = TemporaryFile()  # noqa: SIM115, it lives as long as the stream

    def read(self, blocks: range) -> torch.Tensor:
        count = len(blocks) * self._shape[1] * self._shape[2]
        self._file.seek(4 * blocks.start * self._shape[1] * self._shape[2])
        flat = np.frombuffer(bytearray(self._file.read(4 * count)), dtype=np.float32)
        return torch.from_numpy(flat).view(len(blocks), *self._shape[1:]).to(self._device)

    def write(self, blocks: range, values: torch.Tensor) -> None:
        self._file.seek(4 * blocks.start * self._shape[1] * self._shape[2])
        with disk_errors("a temporary file"):
            self._file.write(values.contiguous().cpu().numpy().data)
            self._file.flush()

    def close(self) -> None:
        self._file.close()
