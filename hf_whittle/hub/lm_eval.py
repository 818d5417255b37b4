"""Results of the LM Evaluation Harness in a file that its own command wrote."""

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files.text import read_json
from ..record.evaluation import TaskEvaluation, task_evaluations

LM_EVAL_FILE = "lm_eval.json"


def read_lm_eval(path: str | Path) -> tuple[TaskEvaluation, ...]:
    """Read a file that `lm_eval --output_path` wrote.

    Raises:
        DataError: if `lm_eval` did not write it.
    """
    try:
        return task_evaluations(read_json(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the results file that lm_eval wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no results of lm_eval ({error!r}); give the file that it wrote") from error


def reduced(path: str | Path) -> dict[str, Any]:
    """The published part of such a file, without paths and settings of the machine it was made on."""
    read_lm_eval(path)
    values = read_json(path)
    return {name: values[name] for name in ("results", "n-shot", "versions") if name in values}
