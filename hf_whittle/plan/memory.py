"""Memory of the stages of a recipe on one device."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig

from ..errors import WhittleError
from ..healing.config import HealingConfig, held_out_blocks
from ..healing.moments_cost import affordable_gap, blocks_in_batch, feature_widths, peak_bytes, products
from ..healing.parts import projections
from .blocks import Blocks
from .facts import Memory
from .fitnesses import Fitnesses
from .loaded import Loaded, largest_layer, loaded
from .students import Students
from .training_memory import (
    Step,
    StepMemory,
    blocks_at_a_time,
    cross_entropy_memory,
    optimizer_bytes,
    text_of,
)

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig
    from ..recipe.recipe import Recipe

_FREE = 0.95
"""Share of the free memory that moments may take."""
SLICED = ("perplexity", "kl", "bits-per-byte")
"""Fitnesses that run the super-network alone, in its own precision."""


@dataclass(frozen=True)
class Memories:
    """Memory of each stage.

    Models are freed when no later stage needs them: a super-network of its own after the extraction, and the teacher
    after the student's training. One that is not in single precision on one device is freed before the extraction.

    Args:
        recipe (`Recipe`): the recipe.
        students (`Students`): its students.
        teacher (`PreTrainedConfig`): the teacher's configuration.
        blocks (`Blocks`): numbers of blocks.
        available (`int`): bytes of the device.
        on_cpu (`bool`): whether it is a CPU.
        draws (`int`, *optional*): entries of a token in the store that the student learns from.
    """

    recipe: "Recipe"
    students: Students
    teacher: PreTrainedConfig
    blocks: Blocks
    available: int
    on_cpu: bool
    draws: int | None = None

    @cached_property
    def loaded_supernet(self) -> Loaded:
        """The super-network as it is loaded."""
        return loaded(self.students.config, self.recipe.supernet_loading, self.available, self.on_cpu)

    @cached_property
    def loaded_teacher(self) -> Loaded:
        """The teacher as it is loaded."""
        return loaded(self.teacher, self.recipe.teacher_loading, self.available, self.on_cpu)

    @property
    def _models(self) -> int:
        """Bytes of super-network and teacher, which may be one model."""
        apart = 0 if self.recipe.is_one_model else self.loaded_teacher.on_device
        return self.loaded_supernet.on_device + apart

    @property
    def _extracted_from(self) -> int:
        """Bytes of the super-network while the student is extracted and healed: all, or what is read of its files."""
        if self.recipe.supernet_loading.is_whole:
            return self.loaded_supernet.on_device
        return largest_layer(self.students.config)

    @property
    def _student(self) -> int:
        return 4 * self.students.parameters

    @property
    def max_gap(self) -> int:
        """Largest gap between kept layers whose moments are exact, as memory allows.

        1 where even that does not fit.
        """
        free = _FREE * (self.available - self.loaded_supernet.on_device)
        try:
            return affordable_gap(self.students.config, self._gathered, free, "the device")
        except WhittleError:
            return 1

    @property
    def _gathered(self) -> int:
        """Tokens whose activations are gathered at a time."""
        most = blocks_in_batch(self.students.config, self.blocks.size)
        return min(self._at_a_time(self.recipe.search.batch_size), self.blocks.healing, most) * self.blocks.size

    def _at_a_time(self, chosen: int | None, evaluated: PreTrainedConfig | None = None) -> int:
        """Blocks of a batch, whether the recipe says how many or not, of an evaluation or without logits."""
        return chosen or blocks_at_a_time(self.blocks.size, self.on_cpu, evaluated)

    @property
    def in_search(self) -> int:
        """Most blocks in a batch of the search."""
        return self._at_a_time(self.recipe.search.batch_size)

    def in_healing(self, settings: HealingConfig) -> int:
        """Blocks in a batch of the healing."""
        return min(self._at_a_time(settings.batch_size), self.blocks.healing)

    def evaluation(self, args: "DistillationConfig") -> int:
        """Bytes of an evaluation in a training, beside weights and optimizer."""
        return Step(args, self.blocks.size, self.draws, self.on_cpu).evaluation(self.students.student_config)

    def teacher_evaluation(self) -> Memory:
        """Memory of measuring the teacher's perplexity, by batches that are halved until they fit."""
        dtype, weights = self.loaded_teacher.dtype, self.loaded_teacher.on_device
        batch = min(self._at_a_time(None, self.teacher), self.blocks.of_teacher)
        logits = cross_entropy_memory(self.teacher, batch, self.blocks.size, dtype)
        while weights < self.available < weights + logits and batch > 1:
            batch //= 2
            logits = cross_entropy_memory(self.teacher, batch, self.blocks.size, dtype)
        return Memory(weights=weights, logits=logits, peak=weights + logits)

    def search(self, fitnesses: Fitnesses) -> Memory:
        """Memory of the search."""
        name, config = self.recipe.search.fitness, self.students.config
        batch = min(self._at_a_time(self.recipe.search.batch_size, config), self.blocks.search)
        dtype = self.loaded_supernet.dtype if name in SLICED else torch.float32
        logits = cross_entropy_memory(config, batch, self.blocks.size, dtype)
        weights = self._models if name in ("kl", "probe", "staged") else self.loaded_supernet.on_device
        moments = activations = 0
        if fitnesses.heals(name):
            weights += 2 * self._student  # of a candidate, and as a model
            moments = 4 * products(config, self.max_gap) + self._solving(max(feature_widths(config)))
            activations = peak_bytes(config, self._gathered, self.max_gap) - 4 * products(config, self.max_gap)
        if name == "kl" and self.on_cpu:  # in half precision
            activations = 2 * self.blocks.search * self.blocks.size * config.vocab_size
        if name in ("probe", "staged"):
            return self._probing(fitnesses, weights, moments, logits)
        peak = weights + moments + max(activations, logits) if moments else weights + activations + logits
        return Memory(weights=weights, moments=moments, activations=activations, logits=logits, peak=peak)

    def _probing(self, fitnesses: Fitnesses, weights: int, moments: int, logits: int) -> Memory:
        """Memory of a search whose candidates are trained."""
        probe = fitnesses.probe
        assert probe is not None
        args = self.recipe.training_arguments(
            self.recipe.output_dir, per_device_train_batch_size=probe.batch_size, gradient_accumulation_steps=1
        )
        step = Step(args, self.blocks.size, self.draws, self.on_cpu).memory(self.students.student_config, None)
        targets = 4 * probe.steps * probe.batch_size * self.blocks.size * self.teacher.hidden_size
        weights += 0 if moments else self._student
        optimizer, activations = 2 * self._student, step.activations + targets
        return Memory(
            weights=weights,
            optimizer=optimizer,
            gradients=self._student,
            moments=moments,
            activations=activations,
            logits=max(logits, step.logits),
            peak=weights + moments + max(logits, optimizer + step.peak) + targets,
        )

    def _solving(self, features: int) -> int:
        """Bytes of solving the largest regression, in double precision."""
        size = self.students.config.hidden_size
        return 8 * (3 * features**2 + 3 * features * size)

    def healing(self, settings: HealingConfig) -> Memory:
        """Memory of extracting the student and healing it."""
        config, held_out = self.students.config, max(1, held_out_blocks(self.blocks.healing, settings.held_out))
        batch, features = self.in_healing(settings), max(feature_widths(config))
        channels = config.hidden_size
        readers = len(projections(config)[0].readers) * (channels + 1) * (2 * channels + 1)
        moments = 8 * 2 * max(features**2 // 2 + features * channels, readers) + self._solving(features)
        activations = 4 * batch * self.blocks.size * (2 * features + 8 * channels)
        student = self.students.student_config
        judged = min(self._at_a_time(settings.batch_size, student), held_out)
        logits = cross_entropy_memory(student, judged, self.blocks.size)
        weights = self._extracted_from + 3 * self._student  # as sliced, as healed, and the model that is judged
        peak = weights + max(moments + activations, logits)
        return Memory(weights=weights, moments=moments, activations=activations, logits=logits, peak=peak)

    def extraction(self) -> Memory:
        """Memory of extracting the student as sliced."""
        weights = self._extracted_from + self._student
        return Memory(weights=weights, peak=weights)

    def training(self, args: "DistillationConfig") -> Memory:
        """Memory of a training: of a step, or of an evaluation if that takes more."""
        step = Step(args, self.blocks.size, self.draws, self.on_cpu)
        teacher = self.teacher if args.has_teacher and self.draws is None else None
        found: StepMemory = step.memory(self.students.student_config, teacher, self.loaded_teacher.dtype)
        evaluation = self.evaluation(args) if text_of(args.eval_strategy) != "no" else 0
        weights = self._student + (0 if teacher is None else self.loaded_teacher.on_device)
        optimizer = optimizer_bytes(args, self.students.parameters)
        return Memory(
            weights=weights,
            optimizer=optimizer,
            gradients=self._student,
            activations=found.activations,
            logits=found.logits,
            evaluation=evaluation,
            peak=weights + optimizer + max(found.peak, evaluation, self._student),
        )
