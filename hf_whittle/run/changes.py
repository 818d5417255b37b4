"""What of a recipe may be another when its run goes on: whatever no stage that has begun depends on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import OutputError, RecipeError
from ..files.text import read_json, write_json
from ..fitness.probe import Probe
from ..fitness.staged import StagedFitness
from ..recipe.recipe import TRAINING_DEFAULTS, Recipe
from ..record.files import RECIPE_FILE
from ..search.result import CANDIDATES_FILE

BASELINE_RECORD = Path("stages", "baseline-settings.json")
"""What the section `baseline` was when its training began."""

_SEARCH = ("teacher", "supernet", "data", "bin", "space", "search", "probe")
_STUDENT = (*_SEARCH, "heal", "training", "teacher_store")
DEPENDS_ON = {
    "search": _SEARCH,
    "initial": (*_SEARCH, "heal"),
    "teacher": ("teacher", "data"),
    "student": _STUDENT,
    "baseline": (*_STUDENT, "baseline"),
}
"""The sections of a recipe that each stage depends on; `probe` is what the search's probes take of other sections."""
FREE_IN_TRAINING = (
    "report_to", "run_name", "project", "save_total_limit", "log_level", "dataloader_num_workers",
    "dataloader_prefetch_factor", "dataloader_pin_memory", "dataloader_persistent_workers",
)  # fmt: skip
"""Fields of `training` and `baseline` that change nothing in what is trained and measured."""


def has_begun(folder: Path, stage: str) -> bool:
    """Whether there is something in a run's folder that was made by a stage."""
    stages = folder / "stages"
    signs: dict[str, Callable[[], bool]] = {
        "search": lambda: (folder / CANDIDATES_FILE).is_file() and (folder / CANDIDATES_FILE).stat().st_size > 0,
        "initial": lambda: (stages / "initial").is_dir(),
    }
    return (stages / f"{stage}.json").is_file() or signs.get(
        stage, lambda: any((stages / stage).glob("checkpoint-*"))
    )()


def check_changes(folder: Path, recipe: Recipe) -> None:
    """Compare a recipe with the one whose run a folder holds, as far as what is there depends on it.

    Raises:
        OutputError: that names the sections that must not be another.
    """
    path = folder / RECIPE_FILE
    needed = {name for stage, names in DEPENDS_ON.items() if has_begun(folder, stage) for name in names}
    if not path.is_file() or not needed:
        return
    try:
        before, now = _sections(Recipe.load(path)), _sections(recipe)
    except RecipeError as error:
        raise OutputError(
            f"{folder} holds the run of a recipe that this version does not take ({error}); mend {path}, or choose "
            "another output_dir"
        ) from error
    if (folder / BASELINE_RECORD).is_file():  # the recipe may have been run without it since
        before["baseline"] = read_json(folder / BASELINE_RECORD)
    if not now["baseline"]:
        needed.discard("baseline")
    changed = [name for name in now if name in needed and before[name] != now[name]]
    if changed == ["probe"]:
        changed = ["training or heal, which the probes of its search go by"]
    if changed:
        changed = [name for name in changed if name != "probe"]
        raise OutputError(
            f"{folder} holds the run of a recipe with another {', '.join(changed)}; choose another output_dir, or "
            "remove that folder"
        )


def record_baseline(folder: Path, recipe: Recipe) -> None:
    """Note what the baseline whose training begins is to be."""
    write_json(folder / BASELINE_RECORD, _sections(recipe)["baseline"])


def _sections(recipe: Recipe) -> dict[str, Any]:
    """The sections of a recipe, as far as anything depends on them."""
    sections = recipe.to_dict()
    del sections["data"]["num_proc"]  # the blocks do not depend on it
    sections["training"] = _training(sections["training"])
    if isinstance(sections["baseline"], dict):
        sections["baseline"] = _training(sections["baseline"], defaults={})
    if recipe.search.fitness in (Probe.name, StagedFitness.name):
        arguments = recipe.training_arguments(recipe.output_dir)
        names = ("alpha", "beta", "temperature", "learning_rate")
        sections["probe"] = {name: getattr(arguments, name) for name in names} | recipe.search.probe
        sections["probe"]["is_healed"] = bool(recipe.heal)
    else:
        sections["probe"] = None
    return sections


def _training(values: dict[str, Any], defaults: dict[str, Any] = TRAINING_DEFAULTS) -> dict[str, Any]:
    return {name: value for name, value in (defaults | values).items() if name not in FREE_IN_TRAINING}
