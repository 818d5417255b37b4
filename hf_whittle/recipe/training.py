"""The sections `training` and `baseline` of a recipe: fields of `DistillationConfig`."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat.transformers import use_one_gpu
from ..errors import RecipeError
from .parsing import parse_values

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
"""Fields in which the trainings of a run differ from the defaults of `DistillationConfig`."""
SET_BY_RUN = ("output_dir", "disable_tqdm")
"""Fields that a run sets itself."""


def parse_training(values: dict[str, Any]) -> dict[str, Any]:
    """Check the names and types of the section `training`."""
    for name in ("load_best_model_at_end", "save_only_model"):
        if values.get(name):
            raise RecipeError(f"training.{name}: a run publishes its last step and resumes exactly; leave it out")
    _check_teacher_arguments(values, "training")
    for name in values:
        if name == "push_to_hub" or str(name).startswith("hub_"):
            raise RecipeError(
                f"training.{name}: a run is published when it is done, by `hf-whittle push`, which takes the token "
                "of `hf auth login` or HF_TOKEN; leave it out"
            )
    return parse_values(_fields(), values, "training")


def parse_baseline(values: dict[str, Any]) -> dict[str, Any]:
    """Check the names and types of the section `baseline`."""
    _check_teacher_arguments(values, "baseline")
    parsed = parse_values(_fields(), values, "baseline")
    for name in ("beta", "hidden_weight", "load_best_model_at_end", "save_only_model"):
        if name in parsed:
            raise RecipeError(f"baseline.{name}: a baseline learns from text alone, to its last step; leave it out")
    return parsed


def _check_teacher_arguments(values: dict[str, Any], where: str) -> None:
    if values.get("teacher_model_init_kwargs") is not None:
        raise RecipeError(
            f"{where}.teacher_model_init_kwargs: a run loads its teacher once for all stages; give teacher_options"
        )


def training_arguments(section: dict[str, Any], folder: str | Path, **overrides: Any) -> "DistillationConfig":
    """Arguments of a training into a folder: the defaults of a run, the values of the section, then overrides."""
    from ..distillation.config import DistillationConfig
    from ..models.placement import accelerator_or_cpu

    values = {**TRAINING_DEFAULTS, "use_cpu": accelerator_or_cpu().type == "cpu", **section, **overrides}
    args = DistillationConfig(**values, output_dir=str(folder))
    use_one_gpu(args)
    for name in ("eval_steps", "save_steps", "logging_steps"):
        value = getattr(args, name)
        if args.max_steps > 0 and value is not None and value < 1:  # else they seem to differ from a checkpoint's
            setattr(args, name, math.ceil(args.max_steps * value))
    return args


def _fields() -> dict[str, Any]:
    """Types of the fields of `DistillationConfig`, without those that a run sets itself."""
    from ..distillation.config import DistillationConfig

    hints = typing.get_type_hints(DistillationConfig)
    hints["fsdp"] |= bool  # as transformers documents it
    names = [item.name for item in dataclasses.fields(DistillationConfig) if item.init]
    return {name: hints[name] for name in names if name not in SET_BY_RUN}
