"""Trackers of `report_to` get the figures of every stage of a run, in runs of their own."""

import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fixtures_run import make_recipe

from hf_whittle.cli.keys import read_keys
from hf_whittle.errors import RecipeError
from hf_whittle.run import run
from hf_whittle.run.trackers import report, search_rows, tracked
from hf_whittle.search.result import SearchResult

HEALED = {"calibration_tokens": 512}


@pytest.fixture
def curves():
    """A function that reads what TensorBoard was given in a folder: `(step, value)` by name."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    reading = pytest.importorskip(name, reason="pip install tensorboard")

    def read(folder):
        events = reading.EventAccumulator(str(folder)).Reload()
        return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


@pytest.fixture
def arguments(recipe):
    """Arguments of a training that reports to TensorBoard."""

    def make(*trackers):
        return recipe.training_arguments(recipe.output_dir, report_to=list(trackers or ["tensorboard"]))

    return make


def _searched():
    """A search whose first evaluation is on a part of the tokens."""
    evaluations = [
        SimpleNamespace(fitness=fitness, parameters=9, tokens=5, is_answer=is_answer)
        for fitness, is_answer in ((1.0, False), (4.0, True), (3.0, True), (5.0, True))
    ]
    return SearchResult(evaluations=evaluations)


def test_a_search_is_logged_by_evaluation(curves, arguments, tmp_path):
    report(arguments(), tmp_path, "search", search_rows(_searched()))
    found = curves(tmp_path / "runs" / "search")
    assert found["train/search_fitness"] == [(2, 4.0), (3, 3.0), (4, 5.0)]
    assert found["train/search_best_fitness"] == [(2, 4.0), (3, 3.0), (4, 3.0)]
    assert found["train/search_tokens"][-1] == (4, 20.0)


def test_evaluations_on_a_part_of_the_tokens_are_left_out():
    rows = [(step, row["search_best_fitness"], row["search_tokens"]) for step, row in search_rows(_searched())]
    assert rows == [(2, 4.0, 10), (3, 3.0, 15), (4, 3.0, 20)]


def test_a_stage_has_a_name_and_a_place_of_its_own(tmp_path, monkeypatch, arguments):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    args, named = arguments(), SimpleNamespace(run_name="mine")
    with tracked(args, tmp_path / "student", "search"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "student" / "runs" / "search")
    assert args.run_name == "student-search" and "TENSORBOARD_LOGGING_DIR" not in os.environ
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    with tracked(named, tmp_path, "baseline"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == os.path.join("elsewhere", "baseline")
    assert named.run_name == "mine-baseline" and os.environ["TENSORBOARD_LOGGING_DIR"] == "elsewhere"


@pytest.mark.parametrize("is_running", [False, True])
def test_a_run_of_wandb_ends_with_the_stage_that_began_it(tmp_path, monkeypatch, is_running):
    wandb = SimpleNamespace(run="the user's" if is_running else None)
    wandb.finish = lambda: setattr(wandb, "run", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with tracked(SimpleNamespace(run_name=None), tmp_path, "search"):
        wandb.run = wandb.run or "the stage's"
    assert wandb.run == ("the user's" if is_running else None)


def test_nothing_is_logged_without_a_tracker(arguments, tmp_path):
    report(arguments("none"), tmp_path, "search", [(1, {"search_fitness": 2.0})])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_stage_of_a_run_is_logged(teacher_folder, texts, tmp_path, curves):
    sections = {"training": {"report_to": "tensorboard"}, "data": HEALED, "heal": True, "baseline": True}
    results = run(make_recipe(teacher_folder, texts, tmp_path / "run", **sections), progress=False)
    found = {folder.name: curves(folder) for folder in (tmp_path / "run" / "runs").iterdir()}
    assert found.keys() == {"search", "healing", "student", "baseline"}
    healing, last = results["healing"], results["student"]["curve"][-1]
    assert [value for _, value in found["healing"]["train/healing_perplexity"]] == pytest.approx(
        [healing["perplexity_before"], healing["perplexity_after"]]
    )
    assert found["student"]["eval/perplexity"][-1] == (last["step"], pytest.approx(last["perplexity"]))
    assert {"train/kl", "train/cross_entropy", "train/total_flos"} <= found["student"].keys()
    assert len(found["search"]["train/search_fitness"]) == results["search"]["evaluations"]
    assert found["baseline"]["eval/perplexity"][-1][1] == pytest.approx(results["baseline"]["curve"][-1]["perplexity"])


@pytest.mark.slow
def test_mlflow_has_a_run_of_each_stage(arguments, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    for stage in ("search", "healing"):
        report(arguments("mlflow"), tmp_path / "run", stage, [(3, {"search_fitness": 2.5})])
    runs = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert {each.info.run_name: each.data.metrics["search_fitness"] for each in runs} == {
        "run-search": 2.5,
        "run-healing": 2.5,
    }


@pytest.mark.slow
def test_wandb_has_a_run_of_each_stage_offline(arguments, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for stage in ("search", "healing"):
        report(arguments("wandb"), tmp_path / "run", stage, [(3, {"search_fitness": 2.5})])
        assert wandb.run is None
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(b"search_fitness" in file.read_bytes() for file in files)


def test_the_command_on_the_page_reports(teacher_folder, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
    keys = read_keys(shlex.split(re.search(r"recipe.yaml (--.*)", page)[1]))
    args = make_recipe(teacher_folder, tmp_path, tmp_path / "run", **keys).training_arguments(tmp_path)
    assert args.report_to == ["tensorboard"] and args.run_name == "pythia-160m"
    logged = {name for _, row in search_rows(_searched()) for name in row}
    assert all(f"`{name}`" in page for name in logged)


def test_a_tracker_that_is_not_installed_is_an_error_before_the_search(teacher_folder, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_comet_available", lambda: False)
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", training={"report_to": "comet_ml"})
    with pytest.raises(RecipeError, match="comet"):
        run(recipe, progress=False)
    assert not (tmp_path / "run" / "candidates.jsonl").exists()
