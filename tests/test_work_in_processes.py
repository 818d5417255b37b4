"""Work that one of two processes does for both; `search`, `distillation` and `run` test what uses it."""

from pathlib import Path

import pytest
from fixtures_processes import torchrun

from hf_whittle.files.locks import folder_lock
from hf_whittle.processes import gathered, in_first, own_share

EXPECTED = {
    "result": "0",
    "nested": "([0], 'ab', False)",
    "error": "OutputError([Errno 28] disk full), shared: True",
    "interrupted": "KeyboardInterrupt(), shared: True",
    "gathered": "[0, 1]",
    "any": "(True, False)",
    "machine": "None",
    "made": "0",
    "failed machine": "WhittleError(no text), shared: True",
    "each": "None",
    "made by each": "['each-0', 'each-1']",
    "failed in one": "WhittleError(no text), shared: True",
    "disk": "True",
    "group": "gloo",
}
"""Outcome of each case in both processes."""
OF_EACH = {
    "picky": ["PickyError(can't pickle), shared: True", "WhittleError(PickyError: can't pickle), shared: True"],
    "share": ["ac", "b"],
    "own disk": ["True", "False"],
}


@pytest.mark.slow
def test_both_processes_have_the_outcome_of_one(tmp_path):
    with folder_lock(tmp_path):
        done = torchrun(Path(__file__).with_name("work_in_processes.py"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("_partial*"))
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for name, expected in EXPECTED.items():
        assert [lines[f"0 {name}"], lines[f"1 {name}"]] == [expected] * 2
    for name, expected in OF_EACH.items():
        assert [lines[f"0 {name}"], lines[f"1 {name}"]] == expected
    for rank in range(2):
        assert (
            "is being written by another process" in lines[f"{rank} lock"] and "shared: True" in lines[f"{rank} lock"]
        )
    assert lines["0 lost"].startswith("WhittleError(another process has ended, and so does this one")


def test_a_process_without_a_launcher_waits_for_none():
    assert in_first(lambda: 1) == 1 and gathered(2) == [2] and own_share("ab") == "ab"
