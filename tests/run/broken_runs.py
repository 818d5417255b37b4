"""Runs that break off at a given moment."""

import errno
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hf_whittle.files.atomic
import hf_whittle.plots
import hf_whittle.run.main
import hf_whittle.run.stages
import hf_whittle.run.trainers
import hf_whittle.search.archive
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import OutputError
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.run import run


class After:
    """Calls a method as it is, and from the `number`-th call on does something else first."""

    def __init__(self, monkeypatch, owner, name, number, act):
        original, calls = getattr(owner, name), []

        def counted(*args, **kwargs):
            calls.append(name)
            if len(calls) >= number:
                act(len(calls) == number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


def interrupt(first):
    raise KeyboardInterrupt


def press_ctrl_c(first):
    if first:
        os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c_twice(first):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def fill_disk(first):
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_fails(first):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


BREAKS = {
    "interrupted in the search": (Perplexity, "__call__", 6, interrupt),
    "interrupted before extraction": (hf_whittle.run.stages, "extract_subnet", 1, interrupt),
    "interrupted before training": (hf_whittle.run.trainers, "DistillationTrainer", 1, interrupt),
    "Ctrl-C in training": (DistillationTrainer, "training_step", 3, press_ctrl_c),
    "Ctrl-C in training of the baseline": (DistillationTrainer, "training_step", 9, press_ctrl_c),
    "two Ctrl-C in training": (DistillationTrainer, "training_step", 3, press_ctrl_c_twice),
    "interrupted in a checkpoint": (DistillationTrainer, "_save_optimizer_and_scheduler", 3, interrupt),
    "interrupted in the last save": (hf_whittle.run.stages, "save_student", 2, interrupt),
    "interrupted before the card": (hf_whittle.run.main, "describe", 1, interrupt),
    "disk full in the search": (hf_whittle.search.archive, "evaluation_line", 6, fill_disk),
    "disk full between generations": (hf_whittle.files.atomic.os, "fsync", 5, fill_disk),
    "disk full in a checkpoint": (DistillationTrainer, "_save_optimizer_and_scheduler", 3, fill_disk),
    "disk full in the last save": (hf_whittle.run.stages, "save_student", 2, fill_disk),
    "torch cannot write a checkpoint": (
        DistillationTrainer,
        "_save_optimizer_and_scheduler",
        3,
        torch_fails,
    ),
    "disk full in a picture": (hf_whittle.plots, "_save", 2, fill_disk),
    "disk full in the card": (hf_whittle.run.main, "describe", 1, fill_disk),
}


def break_off(recipe, broken, monkeypatch):
    *place, act = BREAKS[broken]
    error = OutputError if act in (fill_disk, torch_fails) else KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)  # calls are counted from the search on
        After(patch, *place, act)
        run(recipe, progress=False)


def weights_that_differ(first, second):
    expected, got = (load_file(Path(recipe.output_dir) / "model.safetensors") for recipe in (first, second))
    assert expected.keys() == got.keys()
    return [name for name in expected if not expected[name].equal(got[name])]
