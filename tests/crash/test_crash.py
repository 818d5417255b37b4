"""A program killed at any change of a file resumes to the outcome of an uninterrupted run."""

import json
import sys
from pathlib import Path

import pytest
import warm

SCRIPT = Path(__file__).parent / "kill_everywhere.py"


def kill(program, *options):
    done = warm.run([sys.executable, SCRIPT, program, *options], timeout=None)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def all_survive(report):
    assert report["failures"] == []
    return report["survived"] == report["tried"] > 0


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("program", "points"),
    [("DistillationTrainer", 3), ("store_targets", 4)],
)
def test_killed_at_some_moments(program, points):
    assert all_survive(kill(program, "--points", points))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "points"),
    [("DistillationTrainer", 12), ("SupernetTrainer", 6), ("hf-whittle run", 8), ("store_targets", 6)],
)
def test_killed_at_many_moments(program, points):
    """The benchmark `crash` tries more."""
    assert all_survive(kill(program, "--from-copies", "--points", points))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["DistillationTrainer", "store_targets"])
def test_one_of_two_processes_killed(program):
    assert all_survive(kill(program, "--processes", 2, "--points", 4))


@pytest.mark.slow
def test_the_plain_trainer_does_not_survive_everywhere():
    """Proof that the kills do damage."""
    report = kill("transformers.Trainer", "--points", 24)
    assert report["survived"] < report["tried"]
    assert any("FileNotFoundError" in failure["trouble"] for failure in report["failures"])
