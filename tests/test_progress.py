"""Progress where nobody sees a bar move: few lines, with the time left."""

import io
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

import hf_whittle.progress
from hf_whittle.progress import Lines, progress_bar
from hf_whittle.training.progress import TrainingBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(hf_whittle.progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def work(clock, seconds, **how):
    """Go through 100 items, each of which takes some seconds."""
    for _ in progress_bar(range(100), "search", unit="subnet", **how):
        clock.now += seconds


def test_short_work_says_nothing(clock, capsys):
    work(clock, 0.2)
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_and_the_time_left_now_and_then(clock, capsys):
    work(clock, 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "search: 30 of 100 subnets in 00:30, 01:10 left",
        "search: 60 of 100 subnets in 01:00, 00:40 left",
        "search: 90 of 100 subnets in 01:30, 00:10 left",
        "search: 100 of 100 subnets in 01:40",
    ]


def test_disabled_work_says_nothing(clock, capsys):
    work(clock, 60.0, disable=True)
    assert capsys.readouterr().err == ""


def test_work_that_was_done_before_does_not_count_for_the_time_left(clock, capsys):
    with progress_bar(desc="student", total=200, initial=100, unit="batch") as bar:
        clock.now = 40.0
        bar.set_postfix(loss="2.5")
        bar.update(50)
    assert capsys.readouterr().err.splitlines()[0] == "student: 150 of 200 batches in 00:40, 00:40 left, loss 2.5"
    assert bar.n == 150


def test_work_of_unknown_length_has_no_time_left(clock, capsys):
    bar = progress_bar(iter("ab"), "read", unit="shard", leave=False)
    for _ in bar:
        clock.now += 31
    assert capsys.readouterr().err.splitlines() == ["read: 1 shards in 00:31", "read: 2 shards in 01:02"]


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress_bar(range(3), "search")
    assert not isinstance(bar, Lines) and list(bar) == [0, 1, 2]
    assert "search: 100%" in terminal.getvalue()


def test_a_training_says_how_far_it_and_its_evaluations_are(clock, capsys):
    bar, state, control = TrainingBar("student"), TrainerState(max_steps=4), TrainerControl()
    bar.on_train_begin(None, state, control)
    for _ in range(3):
        clock.now += 20
        bar.on_prediction_step(None, state, control, eval_dataloader=range(3))
    bar.on_evaluate(None, state, control)
    bar.on_log(None, state, control, logs={"eval_perplexity": 12.345})
    for state.global_step in (1, 2):
        clock.now += 30
        bar.on_step_end(None, state, control)
    bar.on_train_end(None, state, control)
    assert capsys.readouterr().err.splitlines() == [
        "evaluation of student: 3 of 3 batches in 00:40",
        "student: 1 of 4 steps in 01:30, 04:30 left, perplexity 12.35",
        "student: 2 of 4 steps in 02:00, 02:00 left, perplexity 12.35",
    ]
