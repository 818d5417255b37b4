"""Runs to report on, read from their folders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..errors import CheckpointError, WhittleError
from ..files.paths import expanded
from ..healing.config import HEALING_FILE
from ..hub.lm_eval import LM_EVAL_FILE, read_lm_eval
from ..hub.recipes import publishable
from ..hub.student_folder import StudentFolder
from ..record.facts import SearchFacts, TrainingFacts
from ..record.files import RECIPE_FILE, RESULTS_FILE
from ..record.lineage import Lineage
from ..record.results import Results
from ..record.samples import SAMPLES_FILE, Sample, load_samples
from ..search.facts import search_facts
from ..search.result import SEARCH_FILE, SearchResult
from ..subnet import SUBNET_FILE, SubnetConfig

T = TypeVar("T")

KNOWN_FILES = (RESULTS_FILE, SEARCH_FILE, SUBNET_FILE, HEALING_FILE, LM_EVAL_FILE, SAMPLES_FILE)
"""Files with facts to report; a folder needs one of them."""


@dataclass(frozen=True)
class Run:
    """A run as the files of its folder describe it, or a part of one.

    Args:
        folder (`Path`): the folder.
        name (`str`): its name on the page.
        student (`StudentFolder`): the student, as its model card has it.
        search (`SearchResult`, *optional*): every candidate of its search.
        recipe (`str`, *optional*): its recipe, without paths of this machine.
        samples (`tuple[Sample, ...]`): text that the student wrote.
    """

    folder: Path
    name: str
    student: StudentFolder
    search: SearchResult | None = None
    recipe: str | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def results(self) -> Results:
        return self.student.lineage.results

    @property
    def subnet(self) -> SubnetConfig | None:
        """The student's subnet; the best one of a search that has no student yet."""
        if self.student.lineage.subnet is not None or self.search is None or not self.search.answers:
            return self.student.lineage.subnet
        return self.search.best

    @property
    def search_facts(self) -> SearchFacts | None:
        """Facts of the search; those that its files tell where the run has not recorded them."""
        if self.results.search is not None or self.search is None or not self.search.answers:
            return self.results.search
        return search_facts(self.search)

    @property
    def trainings(self) -> dict[str, TrainingFacts]:
        """Trainings of the run that were evaluated, by their names on the page."""
        found = {"student": self.results.student, "random initialization": self.results.baseline}
        return {name: facts for name, facts in found.items() if facts is not None and facts.curve}


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs of folders.

    Raises:
        CheckpointError: if there is no such folder, it holds nothing to report, or one of its files is damaged.
        OutputError, RecipeError, SubnetError, DataError: if one of its files is not of this version.
    """
    paths = [Path(expanded(folder)).resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if not path.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give a folder written by `hf-whittle run`")
        if not any((path / name).is_file() for name in KNOWN_FILES):
            raise CheckpointError(f"{folder} holds nothing to report: it has none of {', '.join(KNOWN_FILES)}")
    distinct = list(dict.fromkeys(paths))
    return [_load(path, name) for path, name in zip(distinct, _names(distinct), strict=True)]


def _load(folder: Path, name: str) -> Run:
    recipe, search = folder / RECIPE_FILE, folder / SEARCH_FILE
    return Run(
        folder,
        name,
        _whole(folder, "a file of it", _student),
        _whole(search, "it", lambda path: SearchResult.load(path.parent)) if search.is_file() else None,
        publishable(recipe) if recipe.is_file() else None,
        tuple(_whole(folder / SAMPLES_FILE, "it", load_samples)),
    )


def _student(folder: Path) -> StudentFolder:
    """The student in a folder, or what is known of one that is still to come."""
    if (folder / CONFIG_NAME).is_file() or (folder / ADAPTER_CONFIG_NAME).is_file():
        return StudentFolder.load(folder)
    files = frozenset(path.name for path in folder.glob("*") if path.is_file())
    tasks = tuple(read_lm_eval(folder / LM_EVAL_FILE)) if LM_EVAL_FILE in files else ()
    return StudentFolder(folder.name, files, {}, Lineage.load(folder), tasks)


def _whole(path: Path, what: str, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except WhittleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot report on {path}: {what} is damaged, or of another version ({error!r})"
        ) from error


def _names(paths: Sequence[Path]) -> list[str]:
    """The last names of folders, with those of their parents where they would be equal."""
    names = [path.name for path in paths]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in paths]
    return names
