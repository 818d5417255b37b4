"""Try what a run will do hours later on a tiny student and a few short blocks, before its first expensive step.

The student is the smallest subnet of the space, of a layer or so, cut and healed as the real one will be; it takes one
optimizer step on two blocks of at most 32 tokens, is evaluated, saved and loaded again, and takes another. Teacher,
tokenizer, text, schedule, optimizer, loggers, output folder and format are those of the run. So it costs two passes of
the teacher over some tens of tokens and, where the teacher is not the super-network, loading it once more.
"""

import contextlib
import dataclasses
import gc
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from ..distillation.config import DistillationConfig
from ..errors import RecipeError, WhittleError
from ..extraction.extraction import extract_subnet
from ..extraction.folder import without_bars
from ..files.disk import disk_errors
from ..files.tokenizer import save_tokenizer
from ..models.architecture import architecture_module
from ..models.portable import check_generation_config
from ..record.lineage import Lineage
from ..space.search_space import SearchSpace
from ..training.checkpoints import last_checkpoint
from ..training.strategies import smallest_subnet
from .changes import has_begun

_TOKENS = 32  # of a block, but for a stored teacher, which knows whole blocks alone
_BLOCKS = 8
_FOLDER = "preflight"


def preflight(run: Any) -> None:
    """Do in small what a run has not begun to do yet.

    Args:
        run (`Run`): the run; of its trainings, those are tried that have not begun.

    Raises:
        RecipeError: that says which section does not work and why.
        OutputError, VocabularyError, StoreError, BinError, CheckpointError and others: as the run itself would.
    """
    trainings = _to_begin(run)
    if not trainings:
        return
    folder = run.folder / "stages" / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    _check_search(run)
    try:
        with disk_errors(run.folder), without_bars():
            folder.mkdir(parents=True)
            if not has_begun(run.folder, "teacher"):
                _ = run.teacher  # whose perplexity is reported in any case
            _try_student(run, folder / "initial")
            for section, overrides in trainings.items():
                _try_training(run, section, folder, overrides)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if run.recipe.supernet:
            run.__dict__.pop("teacher", None)  # the search needs the memory
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _to_begin(run: Any) -> dict[str, dict[str, Any]]:
    """Overrides of each training that has not begun, by the section of the recipe that it is asked for in."""
    trainings: dict[str, dict[str, Any]] = {} if has_begun(run.folder, "student") else {"training": {}}
    if run.recipe.baseline and not has_begun(run.folder, "baseline"):
        trainings["baseline"] = run.baseline_overrides
    return trainings


def _space(run: Any) -> SearchSpace:
    """The space of the search, but that it does not go by importance, whose scores are expensive."""
    space = run.recipe.space
    sizes: dict[str, Any] = space.ranges()
    return SearchSpace.from_config(run.supernet.config, space.granularity, space.layer_wise, space.stock_only, **sizes)


def _check_search(run: Any) -> None:
    bin, section = run.recipe.bin.to_bin(run.recipe.data.block_size), run.recipe.search
    with _blamed("search", run.folder):
        _space(run).reachable_pairs(bin)
        section.algorithm.algorithm(_space(run), bin)


def _try_student(run: Any, folder: Path) -> None:
    """Cut and heal a student, and leave it in a folder as a run does."""
    heal = run.recipe.heal
    with _blamed("heal", folder):
        check_generation_config(run.supernet.generation_config)
        student: Any = extract_subnet(
            run.supernet,
            smallest_subnet(_space(run)),
            heal=heal,
            calibration_dataset=_short(run._healing_blocks, _TOKENS) if heal else None,
            progress=False,
        )
        if heal:  # whether or not it helped so small a student
            student.healing = dataclasses.replace(student.healing, is_healed=True)
        student.save_pretrained(folder)
        save_tokenizer(run.tokenizer, folder)
        Lineage.of(student).save(folder)


def _try_training(run: Any, section: str, folder: Path, overrides: dict[str, Any]) -> None:
    student: Any = AutoModelForCausalLM.from_pretrained(folder / "initial")
    if section == "baseline":
        student = architecture_module(student.config, "student").student_class(student.config)(student.config)
    whole = run.recipe.teacher_store is not None
    blocks = {name: _short(run.blocks[name], None if whole else _TOKENS) for name in ("train", "test")}
    with _blamed(section, folder):
        args = _small_steps(run, folder / section, overrides)
        trainer = run.trainer(student, args, blocks, [_OneStep()])
        _without_loggers(trainer).train()
        final = folder / f"{section}-final"
        run.save(trainer.accelerator.unwrap_model(trainer.model), final)
        AutoTokenizer.from_pretrained(final)
        again = run.trainer(AutoModelForCausalLM.from_pretrained(final), args, blocks, [_OneStep()])
        checkpoint = last_checkpoint(folder / section)
        _without_loggers(again).train_from(checkpoint)


def _short(blocks: Dataset, length: int | None) -> Dataset:
    """The beginnings of a few blocks, spread over all of them."""
    number = min(_BLOCKS, len(blocks))
    rows = blocks.select([i * len(blocks) // number for i in range(number)])
    return Dataset.from_dict({name: [value[:length] for value in rows[name]] for name in rows.column_names})


def _small_steps(run: Any, folder: Path, overrides: dict[str, Any]) -> DistillationConfig:
    """The arguments of a training, but for the size of its batches: of one block, of which a step takes two at most."""
    real = run.recipe.training_arguments(folder, **overrides)
    accumulated = real.gradient_accumulation_steps
    steps = real.max_steps
    if steps < 0:
        in_an_epoch = math.ceil(len(run.blocks["train"]) / (real.train_batch_size * accumulated))
        steps = max(1, math.ceil(real.num_train_epochs * in_an_epoch))
    often = {name: getattr(real, name) for name in ("eval_steps", "logging_steps", "save_steps")}
    small = {
        **{name: math.ceil(share * steps) for name, share in often.items() if share is not None and 0 < share < 1},
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": min(2, accumulated),
        "save_total_limit": None,
        "disable_tqdm": True,
    }
    return run.recipe.training_arguments(folder, **{**overrides, **small})


class _OneStep(TrainerCallback):
    """Ends a training after the first step it takes, with all that happens after steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_save = control.should_training_stop = True
        control.should_evaluate = args.eval_strategy != "no"


def _without_loggers(trainer: Any) -> Any:
    """The trainer without the loggers that it found installed: nobody wants to see this training there."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__module__.startswith("transformers.integrations") or isinstance(callback, PrinterCallback):
            trainer.remove_callback(callback)
    return trainer


@contextlib.contextmanager
def _blamed(section: str, folder: Path) -> Iterator[None]:
    """Tell of any error inside the block which section of the recipe does not work."""
    try:
        with disk_errors(folder):
            yield
    except (WhittleError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise RecipeError(
            f"{section}: what this recipe asks for does not work, as was tried in small before anything expensive: "
            f"{reason} ({type(error).__name__}). Nothing is lost: change the recipe and run it again"
        ) from error
