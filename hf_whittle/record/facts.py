"""Facts of a student's making, a section of `results.json` each; a fact that is not known is left out."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts as a dataclass and as JSON.

    A field without a default is in every such section. A field that equals its default is unknown and left out of JSON.
    """

    def to_dict(self) -> dict[str, Any]:
        """Known facts by name, in the order of the fields."""
        known = [field for field in fields(self) if getattr(self, field.name) != field.default]
        return {field.name: _as_json(getattr(self, field.name)) for field in known}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make facts of a dictionary as `to_dict` gives it; other names are passed over.

        Raises:
            TypeError: if `values` is no dictionary, or lacks a fact that every such section has.
        """
        if not isinstance(values, dict):
            raise TypeError(f"{cls.__name__} must be made of a dict, got {values!r}")
        known = {name: hint for name, hint in get_type_hints(cls).items() if values.get(name) is not None}
        return cls(**{name: _as_field(hint, values[name]) for name, hint in known.items()})


def _as_json(value: Any) -> Any:
    if isinstance(value, Facts):
        return value.to_dict()
    return [_as_json(each) for each in value] if isinstance(value, tuple) else value


def _as_field(hint: Any, value: Any) -> Any:
    """A value of JSON as a field of the type `hint` holds it: `Facts`, `Facts | None`, `tuple[Facts, ...]` or plain."""
    kinds = [each for each in (hint, *get_args(hint)) if isinstance(each, type) and issubclass(each, Facts)]
    if not kinds:
        return value
    return tuple(map(kinds[0].from_dict, value)) if isinstance(value, list) else kinds[0].from_dict(value)


@dataclass(frozen=True, kw_only=True)
class SourceFacts(Facts):
    """A checkpoint that a student was extracted from, or learned from.

    Args:
        name (`str`, *optional*): its name on the Hub, or the last name of its folder.
        on_hub (`bool`, *optional*, defaults to `False`): whether the Hub has it.
        commit (`str`, *optional*): its commit there.
        license, license_name, license_link, language (*optional*): metadata of its card.
        vocab_size (`int`, *optional*): entries of its vocabulary, if a student keeps tokens by their ids in it.
    """

    name: str = ""
    on_hub: bool = False
    commit: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    language: str | list[str] = ""
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if Path(self.name).is_absolute():  # older versions wrote the whole path
            object.__setattr__(self, "name", Path(self.name).name)


@dataclass(frozen=True, kw_only=True)
class TeacherFacts(SourceFacts):
    """The model that a student learned from.

    Args:
        parameters (`int`, *optional*): its parameters.
        perplexity (`float`, *optional*): its perplexity on the test text.
        test_tokens (`int`, *optional*): tokens of that text.
        precision (`str`, *optional*): precision in which it was run, if not single, such as `"bfloat16, 4 bits"`.
        bits_per_byte (`float`, *optional*): its bits per byte of that text, if the student's vocabulary may be another.
    """

    parameters: int | None = None
    perplexity: float | None = None
    test_tokens: int | None = None
    precision: str | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True)
class VocabularyFacts(Facts):
    """The vocabularies of a student, and of the baseline, which has the same one, and of the teacher.

    Args:
        size (`int`): entries of the student's vocabulary.
        teacher_size (`int`): entries of the teacher's.
        tokens_per_byte (`float`): tokens of the student's for each byte of held-out text.
        teacher_tokens_per_byte (`float`): tokens of the teacher's.
    """

    size: int
    teacher_size: int
    tokens_per_byte: float
    teacher_tokens_per_byte: float


@dataclass(frozen=True, kw_only=True)
class SpaceFacts(Facts):
    """A search space.

    Args:
        granularity (`str`): `"coarse"` or `"fine"`.
        layer_wise (`bool`): whether layers differ.
        importance (`str`, *optional*): criterion that chose the entries.
    """

    granularity: str
    layer_wise: bool
    importance: str | None = None


@dataclass(frozen=True, kw_only=True)
class BinFacts(Facts):
    """A bin: the cost it bounds, and its bounds."""

    cost: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FitnessFacts(Facts):
    """The fitness that a search minimized.

    Args:
        name (`str`): its name.
        value (`float`): its value for the best subnet.
        of_student (`float`, *optional*): its value for the student, if that is not the best subnet.
        steps (`int`, *optional*): training steps of a probe.
        criterion (`str`, *optional*): criterion of importance.
    """

    name: str
    value: float
    of_student: float | None = None
    steps: int | None = None
    criterion: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchFacts(Facts):
    """A search: its settings, its cost and its best subnet.

    Args:
        algorithm (`str`): name of the algorithm.
        seed (`int`, *optional*): its seed.
        space (`SpaceFacts`): the search space.
        bins (`tuple[BinFacts, ...]`): the bins.
        fitness (`FitnessFacts`): the fitness.
        evaluations (`int`): candidates evaluated.
        tokens_per_evaluation (`int`): tokens that an evaluation reads at most.
        tokens, flops (`int`): cost of all evaluations, with their preparation.
        subnet (`dict`): the best subnet, as `SubnetConfig.to_dict` gives it.
        parameters (`int`): its parameters.
        perplexity (`float`, *optional*): its perplexity as sliced.
    """

    algorithm: str
    seed: int | None = None
    space: SpaceFacts
    bins: tuple[BinFacts, ...]
    fitness: FitnessFacts
    evaluations: int
    tokens_per_evaluation: int
    tokens: int
    flops: int
    subnet: dict[str, Any]
    parameters: int
    perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class HealingFacts(Facts):
    """The outcome of healing, as a `HealingReport` has it, and its cost.

    Args:
        is_healed (`bool`): whether the healed weights were kept.
        perplexity_before, perplexity_after (`float`): on held-out text, as sliced and healed.
        tokens (`int`): tokens fitted to.
        held_out_tokens (`int`): tokens judged on.
        flops (`int`, *optional*): FLOPs.
    """

    is_healed: bool
    perplexity_before: float
    perplexity_after: float
    tokens: int
    held_out_tokens: int
    flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Facts):
    """Held-out perplexity after some steps and, if they are counted, tokens; with bits per byte, if these are asked."""

    step: int
    tokens: int | None = None
    perplexity: float
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingArgumentFacts(Facts):
    """Arguments of a training, by their names in `TrainingArguments` and `DistillationConfig`."""

    alpha: float | None = None
    beta: float | None = None
    temperature: float | None = None
    divergence: str | None = None
    jsd_weight: float | None = None
    hidden_weight: float | None = None
    hidden_loss: str | None = None
    dropped_tokens: str | None = None
    learning_rate: float | None = None
    lr_scheduler_type: str | None = None
    train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    world_size: int | None = None
    max_steps: int | None = None
    seed: int | None = None
    bf16: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Environment(Facts):
    """Versions and hardware of a stage."""

    hf_whittle: str = ""
    transformers: str = ""
    torch: str = ""
    python: str = ""
    hardware: str = ""


@dataclass(frozen=True, kw_only=True)
class AdapterFacts(Facts):
    """Adapters that were trained: kind, trained parameters, rank and scale."""

    type: str
    parameters: int
    r: int | None = None
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken(Facts):
    """FLOPs of training on a token: the student's passes, and the teacher's forward pass."""

    student: int
    teacher: int


@dataclass(frozen=True, kw_only=True)
class TrainingFacts(Facts):
    """A model and its training, as far as there was one.

    Args:
        parameters (`int`, *optional*): the model's parameters, without adapters.
        steps (`int`, *optional*): steps done.
        best_step (`int`, *optional*): the step whose weights were kept, if not the last.
        tokens (`int`, *optional*): tokens seen.
        curve (`tuple[CurvePoint, ...]`, *optional*): an evaluation each.
        arguments (`TrainingArgumentFacts`, *optional*): arguments.
        environment (`Environment`, *optional*): versions and hardware.
        seconds (`float`, *optional*): time, of a training that was not interrupted.
        targets (`str`, *optional*): the part of the teacher's distribution that was learned from, if not all of it.
        adapters (`AdapterFacts`, *optional*): adapters, if only they were trained.
        flops_per_token (`FlopsPerToken`, *optional*): cost.
    """

    parameters: int | None = None
    steps: int | None = None
    best_step: int | None = None
    tokens: int | None = None
    curve: tuple[CurvePoint, ...] = ()
    arguments: TrainingArgumentFacts | None = None
    environment: Environment | None = None
    seconds: float | None = None
    targets: str | None = None
    adapters: AdapterFacts | None = None
    flops_per_token: FlopsPerToken | None = None

    @property
    def final_perplexity(self) -> float | None:
        """Perplexity of the weights that were kept; `None` if it was not measured at their step."""
        step = self.steps if self.best_step is None else self.best_step
        return next((point.perplexity for point in self.curve if point.step == step), None)

    @property
    def first_bits_per_byte(self) -> float | None:
        """Bits per byte before the training; `None` if they were not measured there."""
        return next((point.bits_per_byte for point in self.curve if point.step == 0), None)

    @property
    def final_bits_per_byte(self) -> float | None:
        """Bits per byte of the weights that were kept; `None` if they were not measured at their step."""
        step = self.steps if self.best_step is None else self.best_step
        return next((point.bits_per_byte for point in self.curve if point.step == step), None)

    @property
    def points(self) -> list[tuple[float, float]]:
        """`(tokens, perplexity)` of the curve, for a picture; none where tokens were not counted."""
        return [(point.tokens, point.perplexity) for point in self.curve if point.tokens is not None]


@dataclass(frozen=True, kw_only=True)
class StudentFlops(Facts):
    """FLOPs that a student took, by purpose."""

    search: int
    healing: int | None = None
    training: int
    teacher: int

    @property
    def total(self) -> int:
        return self.search + (self.healing or 0) + self.training + self.teacher


@dataclass(frozen=True, kw_only=True)
class MatchFacts(Facts):
    """Cost to reach the final perplexity of the baseline.

    Args:
        perplexity (`float`): that perplexity.
        baseline_tokens, baseline_flops (`int`): the baseline's cost.
        student_tokens (`int`, *optional*): the student's training tokens, if it reached that perplexity.
        student_flops (`StudentFlops`, *optional*): its FLOPs, likewise.
        flops_ratio (`float`, *optional*): the baseline's FLOPs divided by the student's.
        tokens_ratio (`float`, *optional*): the same of tokens; unknown if the student needed no training.
    """

    perplexity: float
    baseline_tokens: int
    baseline_flops: int
    student_tokens: int | None = None
    student_flops: StudentFlops | None = None
    flops_ratio: float | None = None
    tokens_ratio: float | None = None
