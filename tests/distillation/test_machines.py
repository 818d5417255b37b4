"""Processes of two machines: an error in one is an error in all, and checkpoints are renamed once on each disk."""

from pathlib import Path

import pytest
from fixtures_processes import on_two_machines

from hf_whittle.files.locks import folder_lock

SCRIPT = Path(__file__).with_name("two_machines.py")
CHECKPOINTS = ["checkpoint-2", "checkpoint-3"]
RENAMED = "renamed: checkpoint-1 checkpoint-2 checkpoint-3"

pytestmark = pytest.mark.slow


def train(*arguments):
    """The last line that each of two processes prints."""
    return [output.strip().splitlines()[-1] for output in on_two_machines(SCRIPT, *arguments)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_written_already_is_an_error_in_every_process(tmp_path):
    with folder_lock(tmp_path / "shared"):
        for said in train(tmp_path, "shared"):
            assert said.startswith("refused: ") and f"{tmp_path}/shared is being written by another" in said


def test_on_a_shared_disk_the_first_process_alone_renames(tmp_path):
    """Another machine may see a folder under its old name for some seconds after it was renamed."""
    assert train(tmp_path, "shared") == [RENAMED, "renamed:"]
    assert names(tmp_path / "shared") == CHECKPOINTS
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(names(tmp_path / "shared" / "checkpoint-3"))
    (tmp_path / "shared" / "checkpoint-3" / "model.safetensors").unlink()
    assert train(tmp_path, "shared", "resume") == ["renamed: checkpoint-3", "renamed:"]


def test_on_disks_of_their_own_each_machine_renames_what_it_has(tmp_path):
    assert train(tmp_path, "own") == [RENAMED, RENAMED]
    assert names(tmp_path / "machine-0") == CHECKPOINTS
    assert "rng_state_1.pth" in names(tmp_path / "machine-1" / "checkpoint-3")
