"""Tasks of lm-evaluation-harness, run on a loaded model."""

import contextlib
import difflib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..compat.others import divide_requests
from ..errors import DataError
from .blocks import evaluating

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SEEDS = 0, 1234, 1234, 1234
"""Seeds of random, numpy, torch and few-shot examples, as `lm_eval` has them."""


@dataclass(frozen=True)
class Tasks:
    """Tasks that were found, with their data loaded.

    Args:
        loaded (`dict`): tasks and groups, as `lm_eval` loads them.
        limit (`float`, *optional*): examples of a task, or the share of them if below 1.
    """

    loaded: dict[str, Any]
    limit: float | None = None


def load_tasks(
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: float | None = None,
    include_path: str | Path | None = None,
) -> Tasks:
    """Find tasks by name, and load their data.

    Args:
        names (`Sequence[str]`): names of tasks, groups or tags, or paths of YAML files.
        num_fewshot (`int`, *optional*): examples in the prompt; as many as a task says by default.
        limit (`float`, *optional*): examples of a task to evaluate, or the share of them if below 1.
        include_path (`str` or `Path`, *optional*): folder with YAML files of other tasks.

    Raises:
        ImportError: if `lm_eval` is not installed.
        DataError: if there is no such task, its data cannot be loaded, or it runs code that the model writes.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise ImportError("an evaluation on tasks needs lm-eval: pip install 'hf_whittle[eval]'") from error
    if limit is not None and limit <= 0:
        raise DataError(f"limit must be positive, got {limit}; give a number of examples, or a share below 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise DataError(f"num_fewshot must be 0 or more, got {num_fewshot}")
    if not names:
        raise DataError("no task was named; give names such as lambada_openai,arc_easy")
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"there is no folder {include_path} of tasks")
    with _quiet():
        manager = _manager(names, include_path)
        check_names(names, manager.all_tasks)
        loaded = _load(manager, list(names))
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise DataError(f"the task {name} runs code that the model writes; run it with lm_eval in a sandbox")
            _set_shots(task, num_fewshot)
    return Tasks(loaded, limit)


def _manager(names: Sequence[str], include_path: str | Path | None) -> Any:
    """Find the tasks of the folder and, unless these are all that is wanted, the thousands of `lm_eval`."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # groups may have tasks that are elsewhere
            return own
    return TaskManager(include_path=None if include_path is None else str(include_path))


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise `DataError` for a name that is neither known nor that of a file."""
    for name in names:
        if name not in known and not Path(name).is_file():
            close = difflib.get_close_matches(name, known, n=3)
            advice = f"did you mean {' or '.join(close)}" if close else "`lm_eval ls tasks` lists all"
            raise DataError(f"lm_eval has no task {name!r}: {advice}; give a folder of your own tasks as include_path")


def _load(manager: Any, names: list[str]) -> Any:
    try:
        return manager.load(names)
    except Exception as error:  # every builder of datasets raises errors of its own
        reason = " ".join(str(error).split()) or repr(error)
        raise DataError(f"cannot load the tasks {', '.join(names)}: {reason}") from error


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """Set the number of examples in the prompt, unless the task says that there are none."""
    default = task.get_config("num_fewshot")
    if num_fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEEDS[3])


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Tasks,
    *,
    batch_size: int = 1,
    max_length: int | None = None,
    accelerator: "Accelerator | None" = None,
) -> dict[str, Any]:
    """Run tasks on a model: a student, one with adapters, or a super-network with a subnet active.

    Args:
        model (`PreTrainedModel`): the model, which is left as it was.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        tasks (`Tasks`): the tasks.
        batch_size (`int`, *optional*, defaults to 1): requests in a batch.
        max_length (`int`, *optional*): most tokens that the model reads; its positions by default.
        accelerator (`Accelerator`, *optional*): divides requests among processes, which all call this.

    Returns:
        `dict`: results as `lm_eval` gives them; empty in any process but the first.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    random.seed(_SEEDS[0])
    np.random.seed(_SEEDS[1])
    torch.manual_seed(_SEEDS[2])
    harness: Any = HFLM
    pad = tokenizer.pad_token
    with evaluating(model), _quiet():
        lm = harness(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length
        )
        if accelerator is not None:
            divide_requests(lm, accelerator)
        try:
            found = evaluate(lm, tasks.loaded, limit=tasks.limit, log_samples=False)
        finally:
            tokenizer.pad_token = pad  # which lm_eval sets
    return dict(found or {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what `lm_eval` logs inside the block, but for errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
