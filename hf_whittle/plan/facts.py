"""Facts of a plan: costs of each stage, memory by purpose, disk, and what does not fit."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from .devices import Device


@dataclass(frozen=True)
class Memory:
    """Most bytes on a device in a stage, by purpose; these need not be held at the same time.

    Args:
        weights (`int`): weights of all models: student, teacher, super-network.
        optimizer (`int`): states of the optimizer.
        gradients (`int`): gradients of the weights.
        moments (`int`): sums of products that healing solves for.
        activations (`int`): what forward passes keep, and targets.
        logits (`int`): logits, and what is computed of them.
        evaluation (`int`): what an evaluation of a training holds beside weights and optimizer.
        peak (`int`): most bytes at the same time.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    moments: int = 0
    activations: int = 0
    logits: int = 0
    evaluation: int = 0
    peak: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by purpose, without those that are 0, and without the peak."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value and name != "peak"}


@dataclass(frozen=True)
class StagePlan:
    """Costs of a stage.

    Args:
        name (`str`): `"store"`, `"search"`, `"healing"` or `"extraction"`, `"teacher"`, `"student"` or `"baseline"`.
        tokens (`int`): tokens read, as `results.json` counts them.
        flops (`int`): FLOPs, as `results.json` counts them.
        is_bound (`bool`): whether the recipe alone does not determine the FLOPs, so that they are an upper bound.
        memory (`Memory`): bytes on the device.
        likely_flops (`int`, *optional*): an estimate, where `flops` is a bound of a search, far above what is likely.
        parameters (`int`, *optional*): parameters of the model that the stage is about, at most.
        evaluations (`int`, *optional*): candidates of a search, at most.
        other_flops (`int`, *optional*, defaults to 0): FLOPs that no result counts, such as those of evaluations.
        saved_flops (`int`, *optional*, defaults to 0): FLOPs that results count, but that take no time here: those of
            a teacher whose logits are stored.
        disk (`int`, *optional*, defaults to 0): most bytes on disk that are there in this stage alone.
        precision (`str`, *optional*, defaults to `"fp32"`): precision of most products.
        hours (`float`, *optional*): time on the device, of the likely FLOPs where there is an estimate.
    """

    name: str
    tokens: int
    flops: int
    is_bound: bool
    memory: Memory
    parameters: int | None = None
    likely_flops: int | None = None
    evaluations: int | None = None
    other_flops: int = 0
    saved_flops: int = 0
    disk: int = 0
    precision: str = "fp32"
    hours: float | None = None

    def hours_on(self, device: Device) -> float:
        """Hours on a device."""
        flops = (self.flops if self.likely_flops is None else self.likely_flops) + self.other_flops - self.saved_flops
        return device.hours(flops, self.precision)


@dataclass(frozen=True)
class Problem:
    """A stage that does not fit.

    Args:
        stage (`str`): its name.
        needed, available (`int`): bytes.
        changes (`tuple[str, ...]`): what to change, the most useful first.
    """

    stage: str
    needed: int
    available: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe.

    Args:
        device (`Device`): the device it is for.
        stages (`tuple[StagePlan, ...]`): stages in their order.
        supernet (`int`, *optional*): parameters of the super-network; `None` if the recipe gives the student.
        teacher (`int`): parameters of the teacher.
        student (`int`): parameters of the student, at most.
        is_student_known (`bool`): whether the student is given, or is the only one of the bin.
        disk (`int`): most bytes on disk at the same time.
        problems (`tuple[Problem, ...]`): stages that do not fit.
        notes (`tuple[str, ...]`): assumptions.
    """

    device: Device
    stages: tuple[StagePlan, ...]
    supernet: int | None
    teacher: int
    student: int
    is_student_known: bool
    disk: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Time of all stages."""
        return sum(stage.hours or 0 for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        """The stage of a name.

        Raises:
            KeyError: if the recipe does not have this stage.
        """
        found = {stage.name: stage for stage in self.stages}
        return found[name]

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON."""
        return {**asdict(self), "hours": self.hours}
