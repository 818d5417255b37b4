"""Two processes find, byte for byte, what one does; but for rounding where each holds a part of the super-network."""

from pathlib import Path

import pytest
from fixtures_processes import ENDED, LEFT, launched, on_two_processes
from fixtures_search import assert_same_search
from fixtures_training import make_supernet
from search_in_processes import CONFIGS, search

from hf_whittle import SearchResult

SCRIPT = Path(__file__).with_name("search_in_processes.py")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.json*"))}


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    search(folder, make_supernet(hidden_dropout=0.0))
    assert len(files(folder)) == 2 * len(CONFIGS)
    return files(folder)


@pytest.mark.slow
def test_two_processes_write_what_one_does(on_one_process, tmp_path):
    output = on_two_processes(SCRIPT, tmp_path)  # `accelerate launch` starts several processes on accelerators alone
    assert output.count(ENDED) == 2  # maybe in one line
    assert files(tmp_path) == on_one_process


@pytest.mark.slow
def test_sharded_super_network_is_searched_to_the_same_result(on_one_process, tmp_path):
    """Gathered weights may begin elsewhere in memory, and a kernel then add in another order."""
    assert on_two_processes(SCRIPT, tmp_path / "sharded", "sharded").count(ENDED) == 2  # maybe in one line
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
    on_two_processes(SCRIPT, tmp_path)
    assert files(tmp_path) == on_one_process


@pytest.mark.slow
def test_error_in_one_process_ends_all_with_its_reason(tmp_path):
    done = launched(SCRIPT, tmp_path, "failing")
    assert done.returncode != 0
    assert LEFT in done.stdout  # where one failed, another may wait
    assert "process 1 could not evaluate its candidates: RuntimeError: out of luck" in done.stderr


@pytest.mark.slow
def test_processes_with_different_text_are_an_error_before_anything_is_evaluated(tmp_path):
    done = launched(SCRIPT, tmp_path, "different")
    assert done.returncode != 0
    assert "process 1 searches with another fitness than process 0; give all processes the same" in done.stderr
    assert not files(tmp_path)
