"""Batches of a run in several processes, which together take the blocks of a step that one process would take."""

import math
import os
from pathlib import Path
from typing import Any

from ..distillation.config import DistillationConfig
from ..errors import RecipeError
from ..processes import num_launched
from ..recipe.recipe import Recipe


def check_batches(recipe: Recipe, processes: int | None = None) -> None:
    """Raise `RecipeError` if processes, by default the launched ones, cannot divide a batch of the recipe."""
    processes = processes or num_launched()
    sections: dict[str, dict[str, Any]] = {"training": {}} | (
        {"baseline": recipe.baseline_overrides} if recipe.baseline else {}
    )
    for section, overrides in sections.items():
        args = recipe.training_arguments(recipe.output_dir, **overrides)
        try:
            own_batch(args.per_device_train_batch_size, args.gradient_accumulation_steps, processes)
        except ValueError as error:
            raise RecipeError(f"{section}: {error}") from error


def own_arguments(
    recipe: Recipe, folder: str | Path, processes: int | None = None, **overrides: Any
) -> DistillationConfig:
    """Arguments of a training in each of several processes.

    Args:
        recipe (`Recipe`): the recipe, whose batches are those of all processes together.
        folder (`str` or `Path`): folder of the training.
        processes (`int`, *optional*): their number; that of the launched ones by default.
        overrides: arguments that replace those of the recipe, likewise of all processes together.
    """
    args, processes = recipe.training_arguments(folder, **overrides), processes or num_launched()
    if processes == 1:
        return args
    own = own_batch(args.per_device_train_batch_size, args.gradient_accumulation_steps, processes)
    return recipe.training_arguments(folder, **{**overrides, **own})


def shards_models(args: DistillationConfig) -> bool:
    """Whether a training spreads weights over processes, as its arguments or accelerate's configuration say."""
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return bool(args.fsdp) or by_launcher or args.deepspeed_plugin is not None


def own_batch(blocks: int, accumulated: int, processes: int) -> dict[str, int]:
    """Divide the batch of a step: accumulation as far as it goes, then the blocks of a forward pass.

    Raises:
        ValueError: if processes do not divide the blocks of a step.
    """
    if blocks * accumulated % processes:
        raise ValueError(
            f"{processes} processes cannot divide a step of {blocks * accumulated} blocks, "
            f"per_device_train_batch_size: {blocks} times gradient_accumulation_steps: {accumulated}; start a number "
            f"of processes that does, or set gradient_accumulation_steps to a multiple of {processes}"
        )
    common = math.gcd(accumulated, processes)
    return {
        "gradient_accumulation_steps": accumulated // common,
        "per_device_train_batch_size": blocks * common // processes,
    }
