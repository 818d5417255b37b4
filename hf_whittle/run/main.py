"""The main job, from a recipe to the folder of a student."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, RecipeError
from ..files.atomic import remove_leftovers
from ..files.disk import disk_errors
from ..hub.saving import describe
from ..processes import gathered, in_first, is_first, lock_in_first, sees_folder_of_first
from ..recipe.recipe import Recipe
from ..record.files import RECIPE_FILE
from ..record.match import to_match
from ..record.results import Results
from ..search.result import SearchResult
from . import stages
from .batches import check_batches
from .changes import check_changes
from .fingerprints import check_inputs
from .inputs import Inputs
from .ledger import Ledger
from .preflight import check_teacher, preflight, preflight_search
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
    with _begun(recipe) as (inputs, ledger):
        preflight(inputs, ledger.folder)
        results = _do_stages(inputs, ledger, progress and is_first())
        results = in_first(lambda: _finish(results, ledger))
    return results.to_dict()


def search(recipe: Recipe, *, progress: bool = True) -> dict[str, Any]:
    """Do the search of a recipe alone; `run` of the same recipe goes on from it, as from an interrupted run.

    Args:
        recipe (`Recipe`): the recipe.
        progress (`bool`, *optional*, defaults to `True`): whether to show progress bars.

    Returns:
        `dict`: facts of the search, as in `results.json`; the folder has them as `search.json`, pictures and the best
            subnet, `subnet.json`.

    Raises:
        RecipeError: if the recipe gives the student, so that there is nothing to search for.
        WhittleError: as for `run`.
    """
    if recipe.student is not None:
        raise RecipeError("student: it is given, so there is nothing to search for; give a bin instead, or train it")
    with _begun(recipe) as (inputs, ledger):
        preflight_search(inputs, ledger.folder)
        facts = stages.search(inputs, ledger, progress and is_first())
        in_first(lambda: SearchResult.load(ledger.folder).best.save_pretrained(ledger.folder))
    return facts.to_dict()


@contextlib.contextmanager
def _begun(recipe: Recipe) -> Iterator[tuple[Inputs, Ledger]]:
    """The inputs of a recipe and the ledger of its folder, which is locked, once it is found that they go together."""
    folder = in_first(lambda: _checked(Path(recipe.output_dir)))
    with lock_in_first(folder), disk_errors(folder):
        inputs, ledger = Inputs(recipe), Ledger(folder)
        _check_processes(recipe)
        in_first(lambda: _begin(inputs, ledger))
        check_inputs(ledger.folder, inputs)
        yield inputs, ledger


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
    if inputs.recipe.student is None:
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
    if recipe.student is None:
        results = _make_student(inputs, ledger, progress)
    else:
        results = in_first(lambda: stages.take(inputs, ledger))
    results = replace(results, data=in_first(lambda: stages.data_facts(inputs)))
    trainers = Trainers(inputs, None if recipe.student else in_first(lambda: stages.kept_tokens(ledger)))
    if inputs.counts_bytes:
        results = replace(results, vocabulary=stages.vocabulary(trainers, ledger))
    results = replace(results, teacher=stages.teacher(trainers, ledger, progress))
    student = stages.train_student(trainers, ledger, progress)
    results = replace(results, student=student, environment=student.environment)
    if recipe.baseline:
        results = replace(results, baseline=stages.train_baseline(trainers, ledger, progress))
    if recipe.student is not None:  # the cost of its making is not known, or not all of it
        return results
    return replace(results, to_match=to_match(results))


def _make_student(inputs: Inputs, ledger: Ledger, progress: bool) -> Results:
    """Search for a student, extract it and heal it; the facts of that."""
    results = Results(search=stages.search(inputs, ledger, progress), supernet=stages.supernet_facts(inputs, ledger))
    in_first(lambda: stages.extract(inputs, ledger, progress))
    if inputs.recipe.heal:
        results = replace(results, healing=in_first(lambda: stages.healing(inputs, ledger)))
    return results
