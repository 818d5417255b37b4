"""The main job, from a recipe to the folder of a student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, WhittleError
from ..files.atomic import remove_leftovers
from ..files.disk import disk_errors
from ..files.locks import folder_lock
from ..hub.saving import describe
from ..processes import num_launched
from ..recipe.recipe import Recipe
from ..record.files import RECIPE_FILE
from ..record.match import to_match
from ..record.results import Results
from . import stages
from .changes import check_changes
from .fingerprints import check_inputs
from .inputs import Inputs
from .ledger import Ledger
from .preflight import check_teacher, preflight
from .search_inputs import make_space
from .trainers import Trainers


def run(recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """Run a recipe, and write the student, its card, the search and the pictures into `recipe.output_dir`.

    A run that was interrupted goes on when the same recipe is run again. Sections of the recipe that no finished stage
    depends on may differ then; see `changes.py`.

    Args:
        recipe (`Recipe`): the recipe.
        progress (`bool`, *optional*, defaults to `True`): whether to show progress bars.

    Returns:
        `dict`: everything that was measured, as in `results.json`.

    Raises:
        OutputError: if the folder holds the run of another recipe, another process writes it, or it cannot be written.
        RecipeError: if a training that the recipe asks for does not work; see `preflight.py`.
        DataError, BinError, SubnetError, ArchitectureError, VocabularyError: if the inputs do not fit.
    """
    if num_launched() > 1:
        raise WhittleError(
            "hf_whittle.run works in one process; start it without a launcher. DistillationTrainer itself runs under "
            "accelerate launch or torchrun"
        )
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output folder {folder} is a file; choose another output_dir")
    with folder_lock(folder), disk_errors(folder):
        inputs, ledger = Inputs(recipe), Ledger(folder)
        _begin(inputs, ledger)
        results = _do_stages(inputs, ledger, progress)
        results.save(folder)
        describe(folder)
    return results.to_dict()


def _begin(inputs: Inputs, ledger: Ledger) -> None:
    """Find out whether the run can go on in its folder, and whether its stages will work."""
    check_changes(ledger.folder, inputs.recipe)
    inputs.recipe.save(ledger.folder / RECIPE_FILE)
    for folder in (ledger.folder, ledger.stages):
        remove_leftovers(folder)
    check_teacher(inputs)
    make_space(inputs)  # raises if the super-network does not have its dimensions or sizes
    check_inputs(ledger.folder, inputs)
    preflight(inputs, ledger.folder)


def _do_stages(inputs: Inputs, ledger: Ledger, progress: bool) -> Results:
    """Do every stage that is not done yet; the facts of all."""
    recipe = inputs.recipe
    results = Results(
        search=stages.search(inputs, ledger, progress),
        supernet=stages.supernet_facts(inputs, ledger),
        data=stages.data_facts(inputs),
    )
    stages.extract(inputs, ledger, progress)
    if recipe.heal:
        results = replace(results, healing=stages.healing(inputs, ledger))
    trainers = Trainers(inputs)
    results = replace(results, teacher=stages.teacher(trainers, ledger))
    student = stages.train_student(trainers, ledger, progress)
    results = replace(results, student=student, environment=student.environment)
    if recipe.baseline:
        results = replace(results, baseline=stages.train_baseline(trainers, ledger, progress))
    stages.publish(ledger)
    return replace(results, to_match=to_match(results))
