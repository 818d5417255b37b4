"""Changes of a recipe between two runs in one folder: sections may differ that no stage begun depends on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import OutputError, RecipeError
from ..files.text import read_json, write_json
from ..recipe.recipe import Recipe
from ..recipe.training import TRAINING_DEFAULTS
from ..record.files import RECIPE_FILE
from ..search.result import CANDIDATES_FILE

BASELINE_RECORD = Path("stages", "baseline-settings.json")
"""The section `baseline` as it was when its training began."""

_MODELS = ("teacher", "student", "supernet", "teacher_options", "supernet_options")
_SEARCH = (*_MODELS, "data", "bin", "space", "search", "probe")
_STUDENT = (*_SEARCH, "heal", "training", "teacher_store")
DEPENDS_ON = {
    "search": _SEARCH,
    "initial": (*_SEARCH, "heal"),
    "teacher": ("teacher", "teacher_options", "data"),
    "student": _STUDENT,
    "baseline": (*_STUDENT, "baseline"),
}
"""The sections of a recipe that each stage depends on; `probe` is everything that probes take from other sections."""
FREE_IN_TRAINING = (
    "report_to", "run_name", "project", "save_total_limit", "log_level", "dataloader_num_workers",
    "dataloader_prefetch_factor", "dataloader_pin_memory", "dataloader_persistent_workers",
)  # fmt: skip
"""Fields of `training` and `baseline` that change neither weights nor measurements."""


def has_begun(folder: Path, stage: str) -> bool:
    """Whether a run's folder holds anything made by a stage."""
    stages = folder / "stages"
    signs: dict[str, Callable[[], bool]] = {
        "search": lambda: (folder / CANDIDATES_FILE).is_file() and (folder / CANDIDATES_FILE).stat().st_size > 0,
        "initial": lambda: (stages / "initial").is_dir(),
    }
    return (stages / f"{stage}.json").is_file() or signs.get(
        stage, lambda: any((stages / stage).glob("checkpoint-*"))
    )()


def check_changes(folder: Path, recipe: Recipe) -> None:
    """Compare a recipe with the one whose run a folder holds, as far as the stages begun there depend on it.

    Raises:
        OutputError: if sections differ that must not; it names them.
    """
    path = folder / RECIPE_FILE
    needed = {name for stage, names in DEPENDS_ON.items() if has_begun(folder, stage) for name in names}
    if not path.is_file() or not needed:
        return
    before, now = _sections_before(folder), _sections(recipe)
    if not now["baseline"]:
        needed.discard("baseline")
    changed = [name for name in now if name in needed and before[name] != now[name]]
    if changed == ["probe"]:
        names = "training or heal, which the probes of its search depend on"
    else:
        names = ", ".join(name for name in changed if name != "probe")
    if changed:
        raise OutputError(
            f"{folder} holds the run of a recipe with another {names}; choose another output_dir, or remove that folder"
        )


def record_baseline(folder: Path, recipe: Recipe) -> None:
    """Note the settings of the baseline whose training begins."""
    write_json(folder / BASELINE_RECORD, _sections(recipe)["baseline"])


def _sections_before(folder: Path) -> dict[str, Any]:
    """The sections of the recipe whose run a folder holds."""
    path = folder / RECIPE_FILE
    try:
        sections = _sections(Recipe.load(path))
    except RecipeError as error:
        raise OutputError(
            f"{folder} holds the run of a recipe that this version does not take ({error}); correct {path}, or choose "
            "another output_dir"
        ) from error
    if (folder / BASELINE_RECORD).is_file():  # the recipe may have been run without it since
        sections["baseline"] = read_json(folder / BASELINE_RECORD)
    return sections


def _sections(recipe: Recipe) -> dict[str, Any]:
    """The sections of a recipe, as far as anything depends on them."""
    sections: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(recipe)) | recipe.to_dict()
    del sections["data"]["num_proc"]  # the blocks do not depend on it
    for source in (sections["data"], *(sections["data"]["sources"] or ())):
        del source["dataset_revision"]  # fingerprints compare the text itself
    for name, loading in (("teacher", recipe.teacher_loading), ("supernet", recipe.supernet_loading)):
        sections[f"{name}_options"] = loading.determining
    sections["training"] = _training(sections["training"])
    if isinstance(sections["baseline"], dict):
        sections["baseline"] = _training(sections["baseline"], defaults={})
    if recipe.importance_criterion != "taylor":  # whose scores depend on it, and nothing else
        sections["search"].pop("batch_size", None)
    if isinstance(sections["heal"], dict):
        del sections["heal"]["batch_size"]
    sections["probe"] = None
    if recipe.search.has_probes:
        sections["probe"] = dataclasses.asdict(recipe.probe_config) | {"is_healed": bool(recipe.heal)}
    return sections


def _training(values: dict[str, Any], defaults: dict[str, Any] = TRAINING_DEFAULTS) -> dict[str, Any]:
    return {name: value for name, value in (defaults | values).items() if name not in FREE_IN_TRAINING}
