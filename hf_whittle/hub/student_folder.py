"""Small files of a student's folder, read once: a model card is a function of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..errors import CheckpointError
from ..files.paths import expanded
from ..files.text import read_json
from ..record.evaluation import TaskEvaluation
from ..record.lineage import Lineage
from .lm_eval import LM_EVAL_FILE, read_lm_eval


@dataclass(frozen=True)
class StudentFolder:
    """A student as the small files of its folder describe it.

    Args:
        name (`str`): name of the folder.
        files (`frozenset[str]`): names of its files.
        config (`Mapping`): `config.json` or, of adapters, `adapter_config.json`.
        lineage (`Lineage`): `subnet.json`, `healing.json` and `results.json`.
        lm_eval (`tuple[TaskEvaluation, ...]`): results in `lm_eval.json`.
    """

    name: str
    files: frozenset[str]
    config: Mapping[str, Any]
    lineage: Lineage
    lm_eval: tuple[TaskEvaluation, ...] = ()

    @classmethod
    def load(cls, folder: str | Path, *, lm_eval: str | Path | None = None) -> "StudentFolder":
        """Read the files of a folder.

        Args:
            folder (`str` or `Path`): the folder.
            lm_eval (`str` or `Path`, *optional*): a results file of `lm_eval`, instead of the folder's `lm_eval.json`.

        Raises:
            CheckpointError: if the folder holds no student.
            DataError: if `lm_eval` has not written that file.
        """
        folder = Path(expanded(folder)).resolve()
        files = frozenset(path.name for path in folder.glob("*") if path.is_file())
        if lm_eval is None and LM_EVAL_FILE in files:
            lm_eval = folder / LM_EVAL_FILE
        config = ADAPTER_CONFIG_NAME if ADAPTER_CONFIG_NAME in files else CONFIG_NAME
        return cls(
            folder.name,
            files,
            read_values(folder / config),
            Lineage.load(folder),
            () if lm_eval is None else read_lm_eval(lm_eval),
        )

    @property
    def tasks(self) -> tuple[TaskEvaluation, ...]:
        """Results of tasks: those in `lm_eval.json`, and those of `hf-whittle evaluate` that it does not have."""
        evaluation = self.lineage.results.evaluation
        there = {(each.task, each.metric) for each in self.lm_eval}
        own = evaluation.tasks if evaluation is not None else ()
        return (*self.lm_eval, *(each for each in own if (each.task, each.metric) not in there))

    @property
    def is_adapter(self) -> bool:
        """Whether it holds adapters of a student instead of a whole one."""
        return ADAPTER_CONFIG_NAME in self.files

    @property
    def adapter_of(self) -> str | None:
        """Name of the student that adapters are of; `None` for a whole one."""
        return self.config["base_model_name_or_path"] if self.is_adapter else None


def read_values(path: Path) -> dict[str, Any]:
    """Read the keys and values of a JSON file in a student's folder.

    Raises:
        CheckpointError: if there is no such file, or it holds no JSON with keys and values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no student: {path.name} is missing; save the student there")
    try:
        values = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the student again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no keys and values; save the student again")
    return values
