"""Processes of several machines: what one may not write none waits for, and a disk is taken for shared if it is."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hf_whittle.files.locks import folder_lock

SCRIPT = Path(__file__).with_name("two_machines.py")
CHECKPOINTS = ["checkpoint-2", "checkpoint-3"]
RENAMED = "renamed: checkpoint-1 checkpoint-2 checkpoint-3"


def train(folder, *arguments):
    """What each of two processes says; no launcher is there to end one when the other fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        launched = {
            "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, str(SCRIPT), str(folder), *arguments]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | launched, **output))
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return [out.strip().splitlines()[-1] for out, _ in said]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_written_already_is_an_error_in_every_process(tmp_path):
    with folder_lock(tmp_path / "shared"):
        for said in train(tmp_path, "shared"):
            assert said.startswith("refused: ") and f"{tmp_path}/shared is being written by another" in said


@pytest.mark.slow
def test_on_a_shared_disk_the_first_process_alone_renames(tmp_path):
    """Another machine may see a folder under the name it had, some seconds after it was renamed."""
    assert train(tmp_path, "shared") == [RENAMED, "renamed:"]
    assert names(tmp_path / "shared") == CHECKPOINTS
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(names(tmp_path / "shared" / "checkpoint-3"))
    (tmp_path / "shared" / "checkpoint-3" / "model.safetensors").unlink()
    assert train(tmp_path, "shared", "resume") == ["renamed: checkpoint-3", "renamed:"]


@pytest.mark.slow
def test_on_disks_of_their_own_each_machine_renames_what_it_has(tmp_path):
    assert train(tmp_path, "own") == [RENAMED, RENAMED]
    assert names(tmp_path / "machine-0") == CHECKPOINTS
    assert "rng_state_1.pth" in names(tmp_path / "machine-1" / "checkpoint-3")
