"""The main job, from a recipe to the folder of a student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files.atomic import remove_leftovers
from ..files.disk import disk_errors
from ..hub.saving import describe
from ..processes import gathered, in_first, is_first, lock_in_first, sees_folder_of_first
from ..recipe.recipe import Recipe
from ..record.files import RECIPE_FILE
from ..record.match import to_match
from ..record.results import Results
from . import stages
from .batches import check_batches
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
    depends on may differ then; see `changes.py`. Under `accelerate launch` or `torchrun`, processes divide the search,
    evaluations and the batches of training, and the first one does the rest. All of them call this.

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
    folder = in_first(lambda: _checked(Path(recipe.output_dir)))
    with lock_in_first(folder), disk_errors(folder):
        inputs, ledger = Inputs(recipe), Ledger(folder)
        _check_processes(recipe)
        in_first(lambda: _begin(inputs, ledger))
        check_inputs(ledger.folder, inputs)
        preflight(inputs, ledger.folder)
        results = _do_stages(inputs, ledger, progress and is_first())
        return in_first(lambda: _finish(results, ledger)).to_dict()


def _checked(folder: Path) -> Path:
    """An output folder that is no file."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output folder {folder} is a file; choose another output_dir")
    return folder


def _check_processes(recipe: Recipe) -> None:
    """Find out whether the launched processes divide the batches, and have the output folder on one disk."""
    in_first(lambda: check_batches(recipe))
    apart = [index for index, sees in enumerate(gathered(sees_folder_of_first(recipe.output_dir))) if not sees]

    def check() -> None:
        if apart:
            raise OutputError(
                f"the output folder {recipe.output_dir} of process {apart[0]} is not that of process 0; choose an "
                "output_dir that all machines share"
            )

    in_first(check)


def _begin(inputs: Inputs, ledger: Ledger) -> None:
    """Find out whether the run can go on in its folder, and whether its models go together."""
    check_changes(ledger.folder, inputs.recipe)
    inputs.recipe.save(ledger.folder / RECIPE_FILE)
    for folder in (ledger.folder, ledger.stages):
        remove_leftovers(folder)
    check_teacher(inputs)
    make_space(inputs)  # raises if the super-network does not have its dimensions or sizes


def _finish(results: Results, ledger: Ledger) -> Results:
    """Move the student into the folder of the run, and write the results and the card beside it.

    Returns the results, with evaluations of the student since it was moved there.
    """
    stages.publish(ledger)
    results = replace(results, evaluation=Results.load(ledger.folder).evaluation)
    results.save(ledger.folder)
    describe(ledger.folder)
    return results


def _do_stages(inputs: Inputs, ledger: Ledger, progress: bool) -> Results:
    """Do every stage that is not done yet; the facts of all."""
    recipe = inputs.recipe
    results = Results(
        search=stages.search(inputs, ledger, progress),
        supernet=stages.supernet_facts(inputs, ledger),
        data=in_first(lambda: stages.data_facts(inputs)),
    )
    in_first(lambda: stages.extract(inputs, ledger, progress))
    if recipe.heal:
        results = replace(results, healing=in_first(lambda: stages.healing(inputs, ledger)))
    trainers = Trainers(inputs)
    results = replace(results, teacher=stages.teacher(trainers, ledger))
    student = stages.train_student(trainers, ledger, progress)
    results = replace(results, student=student, environment=student.environment)
    if recipe.baseline:
        results = replace(results, baseline=stages.train_baseline(trainers, ledger, progress))
    return replace(results, to_match=to_match(results))
