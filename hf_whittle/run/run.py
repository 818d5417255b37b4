"""The main job, from a recipe to a folder."""

import os
from pathlib import Path
from typing import Any

from ..errors import OutputError, WhittleError
from ..files.disk import disk_errors
from ..files.locks import folder_lock
from ..recipe.recipe import Recipe
from .stages import Run


def run(recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """Do what a recipe says, and write the student, its card, the search and the pictures into `recipe.output_dir`.

    Run again with the same recipe, it goes on where it was interrupted. What no stage that is done depends on may be
    another then; see `changes.py`.

    Args:
        recipe (`Recipe`): what to do.
        progress (`bool`, *optional*, defaults to `True`): whether to show progress bars.

    Returns:
        `dict`: what was measured, as in `results.json`.

    Raises:
        OutputError: if the folder holds the run of another recipe, another process writes it, or it cannot be written.
        RecipeError: if a training that the recipe asks for does not work; see `preflight.py`.
        DataError, BinError, ArchitectureError, VocabularyError: if the inputs do not fit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise WhittleError(
            "hf_whittle.run works in one process; start it without a launcher. DistillationTrainer itself runs under "
            "accelerate launch or torchrun"
        )
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output folder {folder} is a file; choose another output_dir")
    with folder_lock(folder), disk_errors(folder):
        return Run(recipe, progress).results()
