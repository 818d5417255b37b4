"""The plan of a recipe, from configurations alone."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ..cost.counts import flops_per_token, num_parameters
from ..distillation.store.encodings import Samples
from ..distillation.store.files import STORE_FILE, StoreSettings, read_settings
from ..errors import BinError, DataError, WhittleError
from ..healing.config import HealingConfig
from ..run.batches import check_batches, own_arguments, shards_models
from ..run.inputs import load_config
from ..run.vocabularies import check_vocabularies
from ..subnet import SubnetConfig
from .advice import problem_of
from .blocks import Blocks
from .devices import Device, find_device, measure_device
from .disk import Disk
from .facts import Memory, Plan, StagePlan
from .fitnesses import Fitnesses
from .healing import most_healing_flops
from .loaded import Loaded, largest_layer
from .memory import SLICED, Memories
from .notes import notes_of
from .searching import candidates_of, likely_flops, search_cost
from .shares import replicated, sharded
from .students import GivenStudent, Students
from .training_memory import text_of
from .vocabularies import Vocabularies

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig
    from ..recipe.recipe import Recipe

DEVICE = "a100-80gb"
"""The device of a plan that names none."""


def plan_recipe(
    recipe: "Recipe",
    device: str | Device | None = DEVICE,
    *,
    utilization: float | None = None,
    subnet: SubnetConfig | None = None,
    read_text: bool = False,
    processes: int = 1,
) -> Plan:
    """Plan a recipe: parameters, tokens, FLOPs, memory, disk and hours of each stage. No weights are loaded.

    FLOPs that the recipe determines are those of `results.json`. Others are upper bounds, and the plan says so: before
    the search, the student is known by its bin alone.

    Args:
        recipe (`Recipe`): the recipe.
        device (`str` or `Device`, *optional*): a name in `DEVICES`, or a device; with `None`, this machine is measured
            for some seconds.
        utilization (`float`, *optional*): share of a named device's peak that is assumed; of no effect on others.
        subnet (`SubnetConfig`, *optional*): the student, where it is known; else the costliest in the bin.
        read_text (`bool`, *optional*, defaults to `False`): whether to load, tokenize and count the text, which is
            else taken to be long enough.
        processes (`int`, *optional*, defaults to 1): processes of a launcher, each on a device of its own.

    Raises:
        WhittleError: if the device is unknown or a CPU of several processes, or the utilization out of range.
        RecipeError: if the number of steps depends on text that is not read, or processes cannot divide a batch.
        DataError: if a block has more tokens than the super-network has positions.
        CheckpointError, ArchitectureError, BinError, SubnetError, VocabularyError: as a run would.
    """
    if isinstance(device, str):
        device = find_device(device, utilization)
    if processes < 1:
        raise WhittleError(f"processes must be at least 1, got {processes}")
    if processes > 1 and (device is None or device.is_cpu):
        raise WhittleError("a plan of several processes is for devices of their own; name one of them as the device")
    check_batches(recipe, processes)
    planner = _Planner(recipe, device, subnet, read_text, processes)
    return planner.plan()


@dataclass(frozen=True)
class _Planner:
    """Plans the stages of a recipe.

    Args:
        recipe (`Recipe`): the recipe.
        given (`Device`, *optional*): the device; this machine by default.
        subnet (`SubnetConfig`, *optional*): the student.
        read_text (`bool`): whether to read the text.
        processes (`int`): processes that work together.
    """

    recipe: "Recipe"
    given: Device | None
    subnet: SubnetConfig | None
    read_text: bool
    processes: int = 1

    @cached_property
    def origin(self) -> PreTrainedConfig:
        """Configuration of the super-network, or of the student that is given."""
        config = load_config(self.recipe.origin)
        size, longest = self.recipe.data.block_size, config.max_position_embeddings
        if size > longest:
            raise DataError(f"block_size {size} exceeds the {longest} positions of the model; use smaller blocks")
        return config

    @cached_property
    def teacher(self) -> PreTrainedConfig:
        """Configuration of the teacher."""
        if self.recipe.origin == self.recipe.teacher:
            return self.origin
        config = load_config(self.recipe.teacher)
        check_vocabularies(self.vocabularies.inputs, self.origin, config)
        return config

    @cached_property
    def blocks(self) -> Blocks:
        if not self.read_text:
            return Blocks.of(self.recipe)
        return Blocks.read(self.vocabularies.inputs, self.students.kept_tokens)

    @cached_property
    def vocabularies(self) -> Vocabularies:
        return Vocabularies(self.recipe, self.origin, self.read_text)

    @cached_property
    def students(self) -> Students:
        if self.recipe.student is not None:
            if self.subnet is not None:
                raise WhittleError("the recipe gives its student, which is planned as it is; leave the subnet out")
            return GivenStudent(self.origin, self.recipe.data.block_size)
        space, bin = self.vocabularies.space, self.vocabularies.bin
        space.reachable_pairs(bin)
        if self.subnet is not None:
            self.subnet.validate(self.origin)
            if not bin.contains(self.origin, self.subnet):
                raise BinError(f"the given subnet lies outside the recipe's bin, {bin.low:g} to {bin.high:g} {bin.of}")
        return Students(space, bin, self.recipe.data.block_size, self.subnet)

    @cached_property
    def device(self) -> Device:
        if self.given is not None:
            return self.given
        of_run = self.recipe.training_arguments(self.recipe.output_dir).device
        return measure_device(self.origin, self.students.costliest, self.blocks.size, of_run)

    @cached_property
    def memories(self) -> Memories:
        on_cpu = self.device.is_cpu or self.recipe.training.get("use_cpu", False)
        draws = None if self.recipe.teacher_store is None else self._draws
        return Memories(self.recipe, self.students, self.teacher, self.blocks, self.device.memory, on_cpu, draws)

    @cached_property
    def store(self) -> StoreSettings | None:
        """Settings of the store that the recipe names, if it was written."""
        name = self.recipe.teacher_store
        return None if name is None or not Path(name, STORE_FILE).is_file() else read_settings(Path(name))[0]

    @property
    def _draws(self) -> int:
        encoding: Any = Samples(self.teacher.vocab_size) if self.store is None else self.store.encoding
        return getattr(encoding, "draws", None) or encoding.k

    @cached_property
    def fitnesses(self) -> Fitnesses:
        search = self.recipe.search
        probe = self.recipe.probe_config if search.has_probes else None
        shares = tuple(getattr(search.algorithm, "shares", ()))
        return Fitnesses(
            self.origin,
            self.teacher,
            self.blocks,
            self.memories.max_gap,
            probe,
            bool(self.recipe.heal),
            shares,
            self.vocabularies.stretch,
        )

    def plan(self) -> Plan:
        """The plan of all stages."""
        trainings: dict[str, dict[str, Any]] = {"student": {}}
        if self.recipe.baseline:
            trainings["baseline"] = self.recipe.baseline_overrides
        arguments = {
            name: self.recipe.training_arguments(self.recipe.output_dir, **overrides)
            for name, overrides in trainings.items()
        }
        own = {
            name: own_arguments(self.recipe, self.recipe.output_dir, self.processes, **overrides)
            for name, overrides in trainings.items()
        }
        for args in arguments.values():
            self._trained_blocks(args)  # raises, if at all, before a rehearsal takes its time
        making = [] if self.recipe.student else [self._search(), self._healing()]
        stages = [*making, self._teacher()]
        if self.recipe.teacher_store is not None:
            stages.insert(0, self._store(arguments["student"]))
        stages += [self._training(name, args, own[name]) for name, args in arguments.items()]
        timed = tuple(replace(stage, hours=stage.hours_on(self.device)) for stage in stages)
        fitnesses = None if self.recipe.student else self.fitnesses
        problems = (problem_of(each, self.memories, fitnesses, own.get(each.name)) for each in timed)
        return Plan(
            device=self.device,
            processes=self.processes,
            stages=timed,
            supernet=None if self.recipe.student else num_parameters(self.origin),
            teacher=num_parameters(self.teacher),
            student=self.students.parameters,
            is_student_known=self.students.is_known,
            disk=self._disk.most(timed),
            problems=tuple(problem for problem in problems if problem is not None),
            notes=tuple(self._notes(timed)),
        )

    def _notes(self, stages: tuple[StagePlan, ...]) -> list[str]:
        hours = {stage.name: stage.hours or 0 for stage in stages}
        return notes_of(
            self.recipe,
            self.students,
            self.blocks,
            self.memories,
            self.vocabularies,
            hours,
            has_store=self.store is not None,
            has_read_text=self.read_text,
            processes=self.processes,
        )

    @cached_property
    def _disk(self) -> Disk:
        return Disk(self.students, self.blocks)

    def _search(self) -> StagePlan:
        candidates = candidates_of(self.recipe, self.students)
        tokens, flops = search_cost(self.recipe, self.students, self.fitnesses, candidates)
        is_bound, is_sliced = any(candidates.others.values()), self.recipe.search.fitness == "perplexity"
        how = (self.recipe, self.students, self.fitnesses, candidates, flops)
        return StagePlan(
            name="search",
            tokens=tokens,
            flops=flops,
            is_bound=is_bound,
            likely_flops=likely_flops(*how) if is_bound else None,
            memory=self.memories.search(self.fitnesses),
            evaluations=candidates.number,
            other_flops=0
            if is_sliced
            else self.blocks.search * self.blocks.size * self.students.flops(self.blocks.size),
            disk=self._disk.search(self.fitnesses.heals(self.recipe.search.fitness)),
            precision=_precision(self.memories.loaded_supernet, self.recipe.search.fitness in SLICED),
            processes=self.processes,
        )

    def _healing(self) -> StagePlan:
        settings, size = self.recipe.heal, self.blocks.size
        if not isinstance(settings, HealingConfig):
            memory = self.memories.extraction()
            return StagePlan("extraction", 0, 0, False, memory, self.students.parameters, disk=self._disk.weights)
        blocks = self.blocks.healing
        flops = self.students.most(lambda subnet: most_healing_flops(self.origin, subnet, settings, blocks, size))
        memory, disk = self.memories.healing(settings), self._disk.healing()
        return StagePlan("healing", blocks * size, flops, True, memory, self.students.parameters, disk=disk)

    def _teacher(self) -> StagePlan:
        tokens = self.blocks.of_teacher * self.blocks.size
        flops = tokens * flops_per_token(self.teacher, sequence_length=self.blocks.size)
        memory, precision = self.memories.teacher_evaluation(), _precision(self.memories.loaded_teacher)
        how: dict[str, Any] = {"precision": precision, "processes": self.processes}
        return StagePlan("teacher", tokens, flops, False, memory, num_parameters(self.teacher), **how)

    def _store(self, args: "DistillationConfig") -> StagePlan:
        """The store of targets; one that is there costs nothing more."""
        if self.store is not None:
            weights = self.memories.loaded_teacher.on_device
            size = self.store.blocks * self.store.block_size
            return StagePlan("store", size, 0, False, Memory(weights=weights, peak=weights))
        blocks = self.blocks.train or self._trained_blocks(args)[1]
        tokens = blocks * self.blocks.size
        flops = tokens * flops_per_token(self.teacher, sequence_length=self.blocks.size)
        disk = tokens * Samples(self.teacher.vocab_size).bytes_per_token
        memory, precision = self.memories.teacher_evaluation(), _precision(self.memories.loaded_teacher)
        parameters = num_parameters(self.teacher)
        how: dict[str, Any] = {"disk": disk, "precision": precision, "processes": self.processes}
        return StagePlan("store", tokens, flops, False, memory, parameters, **how)

    def _trained_blocks(self, args: "DistillationConfig") -> tuple[int, int]:
        """Steps of a training, and blocks that it reads."""
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = self.blocks.steps(args)
        return steps, self.blocks.trained(steps, batch)

    def _memory(self, own: "DistillationConfig") -> Memory:
        """Memory of a training in each process."""
        memory = self.memories.training(own)
        if self.processes == 1:
            return memory
        if not shards_models(own):
            return replicated(memory)
        models = [self.students.student_config, *([self.teacher] if own.has_teacher else [])]
        return sharded(memory, self.processes, sum(map(largest_layer, models)))

    def _training(self, name: str, args: "DistillationConfig", own: "DistillationConfig") -> StagePlan:
        size, forward = self.blocks.size, self.students.flops(self.blocks.size)
        steps, blocks = self._trained_blocks(args)
        of_teacher = flops_per_token(self.teacher, sequence_length=size) if args.has_teacher else 0
        evaluated = _evaluations(args, steps) * self.blocks.test * size
        return StagePlan(
            name=name,
            tokens=blocks * size,
            flops=blocks * size * (3 * forward + of_teacher),
            is_bound=not self.students.is_known,
            memory=self._memory(own),
            parameters=self.students.parameters,
            other_flops=evaluated * forward,
            saved_flops=0 if self.recipe.teacher_store is None else blocks * size * of_teacher,
            disk=self._disk.training(args, steps),
            precision="bf16" if args.bf16 or args.fp16 else "fp32",
            processes=self.processes,
        )


def _precision(model: Loaded, is_run: bool = True) -> str:
    """Precision of the products of a stage that runs a loaded model, or else one in single precision."""
    return "bf16" if is_run and model.is_in_16_bits else "fp32"


def _evaluations(args: "DistillationConfig", steps: int) -> int:
    """Evaluations in a training, the one at its end included."""
    at_start = int(args.eval_on_start)
    if text_of(args.eval_strategy) == "epoch" and args.max_steps < 0:
        return at_start + math.ceil(args.num_train_epochs)
    if text_of(args.eval_strategy) != "steps" or not args.eval_steps:
        return at_start + 1
    every = args.eval_steps if args.eval_steps >= 1 else math.ceil(steps * args.eval_steps)
    return at_start + int(steps // every) + (steps % every > 0)
