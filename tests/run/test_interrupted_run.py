"""A run that breaks off at any moment goes on to the same student."""

import json
import signal
from pathlib import Path

import pytest
from broken_runs import BREAKS, break_off, weights_that_differ
from fixtures_disk import largest_file
from fixtures_run import make_recipe
from fixtures_slow import slow_but

import hf_whittle.run.main
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import OutputError
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.run import run


@pytest.mark.slow
@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.parametrize(
    "broken",
    slow_but(
        [name for name in BREAKS if "baseline" not in name],
        "interrupted in the search",
        "two Ctrl-C in training",
        "disk full in the last save",
    ),
)
def test_a_run_that_broke_off_goes_on_to_the_same_student(recipe, same_recipe, results, broken, monkeypatch):
    break_off(same_recipe, broken, monkeypatch)
    again = run(same_recipe, progress=False)
    assert weights_that_differ(recipe, same_recipe) == []
    assert again["student"]["curve"] == results["student"]["curve"]
    assert again["search"] == results["search"]


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.slow
def test_a_stock_baseline_goes_on_to_the_same_one(teacher_folder, texts, tmp_path, monkeypatch):
    changes = {"space": {"layer_wise": False, "stock_only": True}, "baseline": True}
    whole, broken = (make_recipe(teacher_folder, texts, tmp_path / name, **changes) for name in ("whole", "broken"))
    expected = run(whole, progress=False)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == "gpt_neox"
    break_off(broken, "Ctrl-C in training of the baseline", monkeypatch)
    got = run(broken, progress=False)
    assert weights_that_differ(whole, broken) == []
    assert got["baseline"]["curve"][-1] == expected["baseline"]["curve"][-1]


@pytest.mark.slow
@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.parametrize(
    "broken",
    slow_but(["Ctrl-C in training", "two Ctrl-C in training", "disk full in a checkpoint"], "Ctrl-C in training"),
)
def test_a_training_that_broke_off_gives_ctrl_c_back(same_recipe, broken, monkeypatch):
    break_off(same_recipe, broken, monkeypatch)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_checkpoint_cut_off_while_written_is_passed_over(same_recipe, results, monkeypatch):
    break_off(same_recipe, "two Ctrl-C in training", monkeypatch)
    checkpoints = sorted((Path(same_recipe.output_dir) / "stages" / "student").glob("checkpoint-*"))
    state = checkpoints[-1] / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert run(same_recipe, progress=False)["student"]["curve"] == results["student"]["curve"]


@pytest.mark.slow
def test_training_may_be_mended_after_the_search_and_the_search_is_kept(
    teacher_folder, texts, same_recipe, results, monkeypatch
):
    break_off(same_recipe, "interrupted before training", monkeypatch)
    mended = make_recipe(teacher_folder, texts, same_recipe.output_dir, training={"max_steps": 2})
    monkeypatch.setattr(Perplexity, "__call__", lambda *_: pytest.fail("the search was done already"))
    again = run(mended, progress=False)
    assert again["student"]["steps"] == 2 and again["search"]["subnet"] == results["search"]["subnet"]


@pytest.mark.slow
def test_no_room_for_an_optimizer_is_one_error_and_the_same_command_goes_on(recipe, same_recipe, results, monkeypatch):
    """A file of more than 100 kB is refused by the system itself while a checkpoint is written."""
    monkeypatch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)  # which would find out
    start = DistillationTrainer._save_optimizer_and_scheduler

    def with_little_room(trainer, folder):
        with largest_file(100_000):
            start(trainer, folder)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", with_little_room)
        with pytest.raises(OutputError, match=r"could not write .*student: .*run the same command again"):
            run(same_recipe, progress=False)
    assert run(same_recipe, progress=False)["student"]["curve"] == results["student"]["curve"]
    assert weights_that_differ(recipe, same_recipe) == []
