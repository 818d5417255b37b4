"""Recipes: one YAML file that tells `hf-whittle run` everything it needs, checked key by key."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..files.paths import expanded
from ..files.text import write_text
from ..files.yaml import as_yaml, read_yaml
from ..healing.config import HealingConfig
from .data import DataSection
from .loading import LoadingSection
from .parsing import parse
from .sections import BITS_PER_BYTE, BinSection, SearchSection, SpaceSection
from .training import parse_baseline, parse_training, training_arguments

if TYPE_CHECKING:
    from ..cost.bins import Bin
    from ..distillation.config import DistillationConfig
    from ..fitness.probe import ProbeConfig

OF_SEARCH = ("bin", "supernet", "space", "search", "heal", "supernet_options")
"""Keys that say how a student is found and made; a student that is given has none of them."""


@dataclass
class Recipe:
    """Everything that `hf-whittle run` does, from the checkpoint to the trained student.

    Args:
        teacher (`str`): checkpoint the student learns from: a name on the Hub or a local folder.
        output_dir (`str`): folder of the results.
        data (`DataSection`): the text.
        bin (`BinSection`, *optional*): parameters of the student, which is searched for.
        student (`str`, *optional*): the student instead of a bin: a folder, or a name on the Hub. It is trained as it
            is; nothing is searched, extracted or healed.
        supernet (`str`, *optional*): checkpoint the student is extracted from; the teacher by default.
        space (`SpaceSection`): the search space.
        search (`SearchSection`): the search.
        training (`dict`): fields of `DistillationConfig`.
        teacher_store (`str`, *optional*): folder that `hf-whittle store-logits` wrote for this recipe; the student
            learns from it instead of the running teacher.
        heal (`bool` or `HealingConfig`, *optional*, defaults to `True`): whether and how to heal the student before
            it is trained; in YAML, `true` or a mapping.
        baseline (`bool` or `dict`, *optional*, defaults to `False`): whether to train the same architecture from random
            initialization on the same tokens too; a mapping has the fields of `DistillationConfig` in which that
            training differs, such as the learning rate that is best for it.
        teacher_options, supernet_options (`LoadingSection`): how these models are loaded. Without `supernet`, one of
            them stands for both, so that one model is loaded; if they differ, the teacher is loaded twice.
    """

    teacher: str
    output_dir: str
    data: DataSection
    bin: BinSection | None = None
    student: str | None = None
    supernet: str | None = None
    space: SpaceSection = field(default_factory=SpaceSection)
    search: SearchSection = field(default_factory=SearchSection)
    training: dict[str, Any] = field(default_factory=dict)
    teacher_store: str | None = None
    heal: bool | HealingConfig = True
    baseline: bool | dict[str, Any] = False
    teacher_options: LoadingSection = field(default_factory=LoadingSection)
    supernet_options: LoadingSection = field(default_factory=LoadingSection)

    def __post_init__(self) -> None:
        self.teacher, self.output_dir = expanded(self.teacher), expanded(self.output_dir)
        for name in ("student", "supernet", "teacher_store"):
            if getattr(self, name) is not None:
                setattr(self, name, expanded(getattr(self, name)))
        if self.student is not None:
            self.heal = False
        elif self.heal is True:
            self.heal = HealingConfig()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path (`str` or `Path`): the file.
            overrides: keys that replace those of the file; a section as a `dict` of those that change. A `student`
                replaces the bin and everything else that a student would be searched and made by.

        Raises:
            RecipeError: if a key is unknown (naming the nearest valid one), missing or of the wrong type.
        """
        student = overrides.pop("student", None)
        values = _merged(read_yaml(path), overrides)
        if student is None:
            return cls.from_dict(values)
        if values.get("bin") is None:
            return cls.from_dict({**values, "student": student})
        return cls.from_dict(values).with_student(student)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Check a mapping and make it a recipe; errors as for `load`."""
        recipe = parse(cls, values, "")
        if recipe.data.sources is None and not recipe.data.is_named:
            raise RecipeError("data: give either dataset or files, or sources for several of them")
        if recipe.data.streaming and recipe.teacher_store is not None:
            raise RecipeError(
                "teacher_store: a store holds targets of blocks on disk, which streamed text does not become; set "
                "data.streaming to false, or leave teacher_store out"
            )
        recipe._check_origin(values)
        recipe._check_vocabularies()
        recipe._check_loading()
        recipe.training = parse_training(recipe.training)
        recipe._check_training("training", {})
        if isinstance(recipe.baseline, dict):
            recipe.baseline = parse_baseline(recipe.baseline)
            recipe._check_training("baseline", recipe.baseline)
        return recipe

    def with_student(self, student: str) -> "Recipe":
        """The recipe of a student that is given: the same teacher, text and training, without a search."""
        values = {name: value for name, value in self.to_dict().items() if name not in OF_SEARCH}
        values |= {"student": student, "teacher_options": dataclasses.asdict(self.teacher_loading)}
        return Recipe.from_dict(values)

    def _check_origin(self, values: dict[str, Any]) -> None:
        """Check that the student is either searched for or given."""
        if self.student is None:
            if self.bin is None:
                raise RecipeError(
                    "recipe: missing bin; it needs the bin of a student to search for, or a student to train"
                )
            return
        given = [name for name in OF_SEARCH if values.get(name) is not None]
        if given:
            raise RecipeError(
                f"student: it is trained as it is, so {', '.join(given)} would have no effect; leave that out, or "
                "student, to search for one"
            )
        if Path(self.student).is_dir() and Path(self.student).resolve() == Path(self.output_dir).resolve():
            raise RecipeError("output_dir: it is the folder of the student, which is kept; choose another one")

    def _check_vocabularies(self) -> None:
        """Check that subnets with other vocabularies can be compared, and read text."""
        sizes, fitness = self.space.vocab_sizes, self.search.fitness
        if sizes is not None and fitness != BITS_PER_BYTE:
            raise RecipeError(
                f"search.fitness: {fitness} compares predictions of the same tokens, and the subnets of "
                f"space.vocab_sizes have tokens of their own; set fitness: {BITS_PER_BYTE}, or leave vocab_sizes out"
            )
        if sizes is not None and self.teacher_store is not None:
            raise RecipeError(
                "teacher_store: a store has targets for the tokens of one vocabulary, which the search is to choose; "
                "leave it out, or search first, extract the student, and give it as student with a store of its own"
            )
        encoded = [source.token_column for source in self.data.all_sources if source.token_column is not None]
        if encoded and fitness == BITS_PER_BYTE:
            raise RecipeError(
                f"data.token_column: fitness: {BITS_PER_BYTE} reads text, and {encoded[0]} holds token ids; give "
                "text_column, or another fitness without space.vocab_sizes"
            )

    def _check_loading(self) -> None:
        if self.student is None and self.supernet_loading.quantization_config is not None:
            section = "teacher" if self.supernet_options.is_default else "supernet"
            raise RecipeError(
                f"{section}_options.quantization_config: no slice of a quantized super-network can be run, and the "
                "recipe extracts from this model; quantize the teacher alone with teacher_options, and load the "
                "super-network with supernet_options: {dtype: bfloat16}"
            )

    @property
    def origin(self) -> str:
        """The checkpoint that the student is, or is extracted from."""
        return self.student or self.supernet or self.teacher

    @property
    def _is_apart(self) -> bool:
        """Whether the teacher is not the checkpoint that the student is, or is extracted from."""
        return self.student is not None or self.supernet is not None

    def to_bin(self, tokens_per_byte: Mapping[int, float] | None = None) -> "Bin":
        """The bin of a recipe that searches; see `BinSection.to_bin`."""
        assert self.bin is not None
        return self.bin.to_bin(self.data.block_size, tokens_per_byte)

    @property
    def needs_tokens_per_byte(self) -> bool:
        """Whether its bin bounds costs of a text, which vocabularies of several sizes write in different tokens."""
        return self.bin is not None and self.bin.is_of_text and len(self.space.vocab_sizes or ()) > 1

    @property
    def teacher_loading(self) -> LoadingSection:
        """How the teacher is loaded."""
        is_given = self._is_apart or not self.teacher_options.is_default
        return self.teacher_options if is_given else self.supernet_options

    @property
    def supernet_loading(self) -> LoadingSection:
        """How the super-network is loaded."""
        is_given = self.supernet is not None or not self.supernet_options.is_default
        return self.supernet_options if is_given else self.teacher_options

    @property
    def is_one_model(self) -> bool:
        """Whether teacher and super-network are one model in memory."""
        return not self._is_apart and self.teacher_loading == self.supernet_loading

    def _check_training(self, where: str, overrides: dict[str, Any]) -> None:
        try:
            args = self.training_arguments(self.output_dir, **overrides)
        except Exception as error:  # of transformers, accelerate or a library that is missing
            raise RecipeError(f"{where}: {' '.join(str(error).split()) or repr(error)}") from error
        if self.data.streaming and args.max_steps < 0:
            raise RecipeError(f"{where}: a stream has no end; give max_steps, as epochs of streamed text are unknown")

    def training_arguments(self, folder: str | Path, **overrides: Any) -> "DistillationConfig":
        """Arguments of a training into a folder: the defaults of a run, the recipe's values, then overrides."""
        return training_arguments(self.training, folder, **overrides)

    @property
    def baseline_overrides(self) -> dict[str, Any]:
        """The arguments in which the training of the baseline differs from the student's."""
        own = self.baseline if isinstance(self.baseline, dict) else {}
        return {**own, "beta": 0.0, "hidden_weight": 0.0}

    @property
    def probe_config(self) -> "ProbeConfig":
        """Settings of the search's probes; weights, temperature and learning rate are those of training by default."""
        from ..fitness.probe import ProbeConfig

        training = self.training_arguments(self.output_dir)
        names = ("alpha", "beta", "temperature", "learning_rate")
        return ProbeConfig(**{**{name: getattr(training, name) for name in names}, **self.search.probe})

    @property
    def importance_criterion(self) -> Any:
        """Criterion of the importance scores that the space or the fitness needs; `None` if neither needs any."""
        return self.space.importance or ("activation" if self.search.fitness == "importance" else None)

    def to_dict(self) -> dict[str, Any]:
        """Values as in YAML, every default spelled out."""
        values = {**dataclasses.asdict(self), "search": self.search.to_dict()}
        if isinstance(self.heal, HealingConfig) and self.heal.ridge is not None:
            values["heal"]["ridge"] = list(self.heal.ridge)
        if self.space.vocab_sizes is None:
            del values["space"]["vocab_sizes"]
        if self.student is not None:
            return {name: value for name, value in values.items() if name not in OF_SEARCH}
        return values

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, every value spelled out."""
        write_text(path, as_yaml(self.to_dict()))


def _merged(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Values of a recipe in which others replace or complete them; sections are merged key by key."""
    changed = dict(values)
    for name, value in overrides.items():
        before = changed.get(name)
        changed[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return changed
