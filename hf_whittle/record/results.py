"""`results.json`: all facts of a student's making, read and written in one place."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

from ..files.locks import folder_lock
from ..files.text import read_json, write_json
from .data import DataFacts
from .evaluation import EvaluationFacts
from .facts import (
    Environment,
    Facts,
    HealingFacts,
    MatchFacts,
    SearchFacts,
    SourceFacts,
    TeacherFacts,
    TrainingFacts,
    VocabularyFacts,
)
from .files import RESULTS_FILE


@dataclass(frozen=True, kw_only=True)
class Results(Facts):
    """Facts of a student's making by section, each `None` if it is not known.

    Args:
        supernet (`SourceFacts`, *optional*): the checkpoint it was extracted from.
        began_with (`SourceFacts`, *optional*): the checkpoint that its training began with, if that was given.
        search (`SearchFacts`, *optional*): the search that found it.
        healing (`HealingFacts`, *optional*): its healing.
        data (`DataFacts`, *optional*): its training text.
        vocabulary (`VocabularyFacts`, *optional*): its vocabulary, if it may be another than the teacher's.
        teacher (`TeacherFacts`, *optional*): the model it learned from.
        student (`TrainingFacts`, *optional*): its size and training.
        baseline (`TrainingFacts`, *optional*): the training of the same architecture from random initialization.
        to_match (`MatchFacts`, *optional*): the cost to reach the baseline's final perplexity.
        evaluation (`EvaluationFacts`, *optional*): later evaluations of the student.
        environment (`Environment`, *optional*): versions and hardware.
    """

    supernet: SourceFacts | None = None
    began_with: SourceFacts | None = None
    search: SearchFacts | None = None
    healing: HealingFacts | None = None
    data: DataFacts | None = None
    vocabulary: VocabularyFacts | None = None
    teacher: TeacherFacts | None = None
    student: TrainingFacts | None = None
    baseline: TrainingFacts | None = None
    to_match: MatchFacts | None = None
    evaluation: EvaluationFacts | None = None
    environment: Environment | None = None

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Facts of JSON; a section that another program or an older version wrote is passed over."""
        sections = values if isinstance(values, dict) else {}
        kinds = {name: get_args(hint)[0] for name, hint in get_type_hints(cls).items()}
        known: dict[str, Any] = {name: _read(kind, sections.get(name)) for name, kind in kinds.items()}
        return cls(**known)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the file in a folder; nothing is known without one."""
        path = Path(folder) / RESULTS_FILE
        return cls.from_dict(read_json(path)) if path.is_file() else cls()

    def save(self, folder: str | Path) -> None:
        """Write the file into a folder."""
        write_json(Path(folder) / RESULTS_FILE, self.to_dict())

    @property
    def of_making(self) -> "Results":
        """Sections that stay true of a student whatever it is trained on."""
        return Results(supernet=self.supernet, began_with=self.began_with, search=self.search, healing=self.healing)


def record_evaluation(folder: str | Path, facts: EvaluationFacts) -> None:
    """Add evaluations to `results.json` in a student's folder, in place of those of the same texts and tasks.

    Raises:
        OutputError: if another process writes the folder, or it cannot be written.
    """
    with folder_lock(folder):
        results = Results.load(folder)
        before = results.evaluation or EvaluationFacts()
        replace(results, evaluation=before.updated_by(facts)).save(folder)


def _read(kind: type[Facts], values: Any) -> Facts | None:
    try:
        return kind.from_dict(values)
    except TypeError:  # a fact is missing, or the section is no dict
        return None
