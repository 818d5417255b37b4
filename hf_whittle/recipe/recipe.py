"""Recipes: one YAML file that says what `hf-whittle run` does, checked key by key."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..files.paths import expanded
from ..files.text import write_text
from ..files.yaml import as_yaml, read_yaml
from ..healing.config import HealingConfig
from .sections import BinSection, DataSection, SearchSection, SpaceSection
from .typed_values import parse, parse_values

if TYPE_CHECKING:
    from ..distillation.config import DistillationConfig


TRAINING_DEFAULTS: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 0.04,
    "eval_on_start": True,
    "save_steps": 0.1,
    "save_total_limit": 1,
    "logging_steps": 0.02,
    "include_num_input_tokens_seen": "all",
    "lr_scheduler_type": "cosine",
    "report_to": "none",
}


@dataclass
class Recipe:
    """What `hf-whittle run` does.

    Args:
        teacher (`str`): checkpoint the student learns from: a name on the Hub or a local folder.
        output_dir (`str`): folder of the results.
        data (`DataSection`): the text.
        bin (`BinSection`): parameters of the student.
        supernet (`str`, *optional*): checkpoint the student is cut from; the teacher by default.
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
    """

    teacher: str
    output_dir: str
    data: DataSection
    bin: BinSection
    supernet: str | None = None
    space: SpaceSection = field(default_factory=SpaceSection)
    search: SearchSection = field(default_factory=SearchSection)
    training: dict[str, Any] = field(default_factory=dict)
    teacher_store: str | None = None
    heal: bool | HealingConfig = True
    baseline: bool | dict[str, Any] = False

    def __post_init__(self) -> None:
        self.teacher, self.output_dir = expanded(self.teacher), expanded(self.output_dir)
        self.supernet = None if self.supernet is None else expanded(self.supernet)
        self.teacher_store = None if self.teacher_store is None else expanded(self.teacher_store)
        if self.heal is True:
            self.heal = HealingConfig()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path (`str` or `Path`): the file.
            overrides: top-level keys that replace those of the file.

        Raises:
            RecipeError: if a key is unknown (naming the nearest valid one), missing or of the wrong type.
        """
        values = read_yaml(path)
        return cls.from_dict(values | {name: value for name, value in overrides.items() if value is not None})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Check a mapping and make it a recipe; errors as for `load`."""
        recipe = parse(cls, values, "")
        sources = [recipe.data.dataset, recipe.data.files]
        if sum(source is not None for source in sources) != 1:
            raise RecipeError("data: give either dataset or files")
        for name in ("load_best_model_at_end", "save_only_model"):
            if recipe.training.get(name):
                raise RecipeError(f"training.{name}: a run publishes its last step and goes on exactly; leave it out")
        for name in recipe.training:
            if name == "push_to_hub" or str(name).startswith("hub_"):
                raise RecipeError(
                    f"training.{name}: a run is published when it is done, by `hf-whittle push`, which takes the token "
                    "of `hf auth login` or HF_TOKEN; leave it out"
                )
        recipe.training = parse_values(_training_hints(), recipe.training, "training")
        recipe._check_training("training", {})
        if isinstance(recipe.baseline, dict):
            recipe.baseline = parse_values(_training_hints(), recipe.baseline, "baseline")
            for name in ("beta", "hidden_weight", "load_best_model_at_end", "save_only_model"):
                if name in recipe.baseline:
                    raise RecipeError(
                        f"baseline.{name}: a baseline learns from text alone, to its last step; leave it out"
                    )
            recipe._check_training("baseline", recipe.baseline)
        return recipe

    def _check_training(self, where: str, overrides: dict[str, Any]) -> None:
        try:
            self.training_arguments(self.output_dir, **overrides)
        except Exception as error:  # of transformers, accelerate or a library that is missing
            raise RecipeError(f"{where}: {' '.join(str(error).split()) or repr(error)}") from error

    def training_arguments(self, folder: str | Path, **overrides: Any) -> "DistillationConfig":
        """`DistillationConfig` of a training into a folder: the defaults of a run, the recipe's values, overrides."""
        import torch

        from ..distillation.config import DistillationConfig

        values = {**TRAINING_DEFAULTS, "use_cpu": not torch.cuda.is_available(), **self.training, **overrides}
        args = DistillationConfig(**values, output_dir=str(folder))
        for name in ("eval_steps", "save_steps", "logging_steps"):
            value = getattr(args, name)
            if args.max_steps > 0 and value is not None and value < 1:  # else they seem to differ from a checkpoint's
                setattr(args, name, math.ceil(args.max_steps * value))
        return args

    def to_dict(self) -> dict[str, Any]:
        values = {**dataclasses.asdict(self), "search": self.search.to_dict()}
        if isinstance(self.heal, HealingConfig):
            values["heal"]["ridge"] = list(self.heal.ridge)
        return values

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, every value spelled out."""
        write_text(path, as_yaml(self.to_dict()))


def _training_hints() -> dict[str, Any]:
    """Types of the keys of `training`: the fields of `DistillationConfig` but for those a run sets itself."""
    from ..distillation.config import DistillationConfig

    hints = typing.get_type_hints(DistillationConfig)
    set_by_run = {"output_dir", "disable_tqdm"}
    names = [item.name for item in dataclasses.fields(DistillationConfig) if item.init]
    return {name: hints[name] for name in names if name not in set_by_run}
