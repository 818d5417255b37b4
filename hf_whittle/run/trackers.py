"""Trackers that `training.report_to` names, such as TensorBoard: a run of theirs for each stage."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState

from ..compat.transformers import reporting_callbacks
from ..processes import is_first
from ..search.result import SearchResult

FOLDER = "runs"
"""Folder of TensorBoard's files in that of a run; a training's own folder is removed when it is done."""
_LOGGING_DIR = "TENSORBOARD_LOGGING_DIR"


@contextlib.contextmanager
def tracked(args: Any, folder: Path, stage: str) -> Iterator[None]:
    """Give the run that trackers begin inside the block a name and a place of its own, and end it with the block.

    Args:
        args (`TrainingArguments`): arguments of the stage, whose `run_name` is set.
        folder (`Path`): folder of the run.
        stage (`str`): name of the stage.
    """
    args.run_name = f"{args.run_name or folder.resolve().name}-{stage}"
    given, is_another = os.environ.get(_LOGGING_DIR), _wandb_run() is not None
    os.environ[_LOGGING_DIR] = str(Path(given or folder / FOLDER) / stage)
    try:
        yield
    finally:
        if given is None:
            del os.environ[_LOGGING_DIR]
        else:
            os.environ[_LOGGING_DIR] = given
        if not is_another and _wandb_run() is not None:
            sys.modules["wandb"].finish()  # else the next stage would go on with it


def _wandb_run() -> Any:
    """The active run of Weights & Biases, which has one in a process."""
    return getattr(sys.modules.get("wandb"), "run", None)


def report(args: Any, folder: Path, stage: str, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Log figures of a stage that is no training, in the first process.

    Args:
        args (`TrainingArguments`): arguments of a training of the run.
        folder (`Path`): folder of the run.
        stage (`str`): name of the stage.
        rows (`Iterable`): a step and its figures each.
    """
    if not args.report_to or not is_first():
        return
    state, control = TrainerState(is_world_process_zero=True, is_local_process_zero=True), TrainerControl()
    with tracked(args, folder, stage):
        callbacks = reporting_callbacks(args.report_to)
        for callback in callbacks:
            callback.on_train_begin(args, state, control)
        for step, figures in rows:
            state.global_step = step
            for callback in callbacks:
                callback.on_log(args, state, control, logs=dict(figures))
        for callback in callbacks:
            callback.on_train_end(args, state, control)


def search_rows(result: SearchResult) -> Iterator[tuple[int, dict[str, float]]]:
    """Figures of each evaluation on all tokens, by its number: such evaluations compare with each other."""
    best, tokens = result.best_so_far(), 0
    for number, evaluation in enumerate(result.evaluations, 1):
        tokens += evaluation.tokens
        if evaluation.is_answer:
            yield (
                number,
                {
                    "search_fitness": evaluation.fitness,
                    "search_best_fitness": best[number - 1],
                    "search_parameters": evaluation.parameters,
                    "search_tokens": tokens,
                },
            )
