"""Two processes find, byte for byte, what one does; also where each holds a part of the super-network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_training import make_supernet
from search_in_processes import CONFIGS, search

SCRIPT = Path(__file__).with_name("search_in_processes.py")


def launch(*arguments, launcher=("torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, "-m", *launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.json*"))}


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    search(folder, make_supernet(hidden_dropout=0.0))
    assert len(files(folder)) == 2 * len(CONFIGS)
    return files(folder)


ACCELERATE = (
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
)


def test_two_processes_write_what_one_does(on_one_process, tmp_path):
    done = launch(tmp_path, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == on_one_process


def test_sharded_super_network_is_searched_to_the_same_bytes(on_one_process, tmp_path):
    done = launch(tmp_path, "sharded")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == on_one_process


def test_search_goes_on_with_another_number_of_processes(on_one_process, tmp_path):
    search(tmp_path, make_supernet(hidden_dropout=0.0))
    for name in CONFIGS:
        path = tmp_path / name / "candidates.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == on_one_process


def test_error_in_one_process_ends_all_with_its_reason(tmp_path):
    done = launch(tmp_path, "failing")
    assert done.returncode != 0
    assert "process 1 could not evaluate its candidates: RuntimeError: out of luck" in done.stderr
