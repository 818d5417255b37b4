"""Results of the LM Evaluation Harness, reduced for publication: tasks, shots, values and their errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files.text import read_json

LM_EVAL_FILE = "lm_eval.json"


@dataclass(frozen=True)
class LMEvalTask:
    """A metric of a task.

    Args:
        task (`str`): the task's name.
        title (`str`): the task's name for people.
        shots (`int`, *optional*): examples in the prompt.
        metric (`str`): the metric.
        value (`float`): its value.
        error (`float`, *optional*): its standard error.
    """

    task: str
    title: str
    shots: int | None
    metric: str
    value: float
    error: float | None


def read_lm_eval(path: str | Path) -> list[LMEvalTask]:
    """Read a file that `lm_eval --output_path` wrote.

    Raises:
        DataError: if `lm_eval` did not write it.
    """
    try:
        values = read_json(path)
        return [
            row
            for task, metrics in values["results"].items()
            for row in _rows(task, metrics, values.get("n-shot", {}).get(task))
        ]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the results file that lm_eval wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no results of lm_eval ({error!r}); give the file that it wrote") from error


def _rows(task: str, metrics: dict[str, Any], shots: int | None) -> list[LMEvalTask]:
    title = str(metrics.get("alias", task)).strip(" -")
    rows = []
    for key, value in metrics.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr") or not filtered:
            continue
        error = metrics.get(f"{name}_stderr,{filtered}")
        metric = name if filtered == "none" else f"{name} ({filtered})"
        rows.append(LMEvalTask(task, title, shots, metric, value, error if isinstance(error, int | float) else None))
    return rows


def reduced(path: str | Path) -> dict[str, Any]:
    """The published part of such a file, without paths and settings of the machine it was made on."""
    read_lm_eval(path)
    values = read_json(path)
    return {name: values[name] for name in ("results", "n-shot", "versions") if name in values}
