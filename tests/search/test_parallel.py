"""Two processes find, byte for byte, what one does; but for rounding where each holds a part of the super-network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_search import assert_same_search
from fixtures_training import make_supernet
from search_in_processes import CONFIGS, search

from hf_whittle import SearchResult

SCRIPT = Path(__file__).with_name("search_in_processes.py")


def launch(*arguments):
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
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


def test_two_processes_write_what_one_does(on_one_process, tmp_path):
    done = launch(tmp_path)  # `accelerate launch` starts several processes on accelerators alone
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the process group was ended") == 2  # maybe in one line
    assert files(tmp_path) == on_one_process


@pytest.mark.slow
def test_sharded_super_network_is_searched_to_the_same_result(on_one_process, tmp_path):
    """Gathered weights may begin elsewhere in memory, and a kernel then add in another order."""
    done = launch(tmp_path / "sharded", "sharded")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the process group was ended") == 2  # maybe in one line
    assert files(tmp_path / "sharded").keys() == on_one_process.keys()
    for name, content in on_one_process.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in CONFIGS:
        found, expected = SearchResult.load(tmp_path / "sharded" / name), SearchResult.load(tmp_path / name)
        assert_same_search(found, expected)
        assert found.settings == expected.settings


@pytest.mark.slow
def test_search_goes_on_with_another_number_of_processes(on_one_process, tmp_path):
    search(tmp_path, make_supernet(hidden_dropout=0.0))
    for name in CONFIGS:
        path = tmp_path / name / "candidates.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == on_one_process


@pytest.mark.slow
def test_error_in_one_process_ends_all_with_its_reason(tmp_path):
    done = launch(tmp_path, "failing")
    assert done.returncode != 0
    assert "a process group was left" in done.stdout  # where one failed, another may wait
    assert "process 1 could not evaluate its candidates: RuntimeError: out of luck" in done.stderr
