"""A search that was killed and resumed leaves the same bytes as one that never stopped."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random

import pytest
import small_searches
import warm
from fixtures_search import BIN, CONFIG
from fixtures_slow import slow_but
from small_searches import ALGORITHMS

from hf_whittle import EvolutionConfig, ParameterBin, SearchSpace, search_subnets
from hf_whittle.errors import OtherSearchError, OutputError

SPACE = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
SETTINGS = {"generations": 3, "population_size": 6, "num_offspring": 5, "num_elites": 3, "seed": 4}
EVALUATIONS = 21
FILES = ("candidates.jsonl", "search.json")


def toy_fitness(subnet):
    return int(subnet.digest, 16) / 7e13


class Counted:
    """The toy fitness, which notes what it is asked and stops at one evaluation."""

    settings = {"name": "toy"}

    def __init__(self, stop_at=None, error=KeyboardInterrupt):
        self.asked, self.stop_at, self.error = [], stop_at, error

    def __call__(self, subnet):
        if len(self.asked) == self.stop_at:
            raise self.error
        self.asked.append(subnet)
        return toy_fitness(subnet)


def search(folder, fitness=None, bin=BIN, space=SPACE, **settings):
    config = EvolutionConfig(**{**SETTINGS, **settings})
    fitness = fitness or Counted()
    return search_subnets(None, space, bin=bin, config=config, fitness=fitness, output_dir=folder, progress=False)


def read(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    fitness = Counted()
    search(folder, fitness)
    assert len(set(fitness.asked)) == len(fitness.asked) == EVALUATIONS
    return folder


def test_same_seed_gives_the_same_bytes(uninterrupted, tmp_path):
    search(tmp_path)
    assert read(tmp_path) == read(uninterrupted)


@pytest.mark.parametrize("stop_at", [0, 1, 5, 6, 7, 11, 16, 20])
def test_interrupted_search_goes_on_to_the_same_bytes_and_evaluates_nothing_twice(uninterrupted, tmp_path, stop_at):
    first, second = Counted(stop_at), Counted()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, first)
    lines = (tmp_path / "candidates.jsonl").read_bytes().splitlines(keepends=True)
    assert lines == read(uninterrupted)["candidates.jsonl"].splitlines(keepends=True)[:stop_at]
    search(tmp_path, second)
    assert read(tmp_path) == read(uninterrupted)
    asked = first.asked + second.asked
    assert len(set(asked)) == len(asked) == EVALUATIONS


def test_search_interrupted_again_and_again_gives_the_same_bytes(uninterrupted, tmp_path):
    asked = []
    for _ in range(EVALUATIONS):
        fitness = Counted(stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, fitness)
            raise KeyboardInterrupt
        asked += fitness.asked
    search(tmp_path)
    assert read(tmp_path) == read(uninterrupted)
    assert len(set(asked)) == len(asked) == EVALUATIONS


@pytest.mark.parametrize("cut", [1, 2, 20, 300])
@pytest.mark.parametrize("stop_at", [1, 6, 13])
def test_torn_last_line_is_evaluated_anew(uninterrupted, tmp_path, stop_at, cut):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Counted(stop_at))
    path = tmp_path / "candidates.jsonl"
    last = len(path.read_bytes().splitlines(keepends=True)[-1])
    path.write_bytes(path.read_bytes()[: -min(cut, last - 1)])
    fitness = Counted()
    search(tmp_path, fitness)
    assert len(fitness.asked) == EVALUATIONS - stop_at + 1
    assert read(tmp_path) == read(uninterrupted)


def test_finished_search_is_read_back_without_an_evaluation(uninterrupted, tmp_path):
    before = search(tmp_path)
    fitness = Counted(stop_at=0)
    after = search(tmp_path, fitness)
    assert after == before
    assert not fitness.asked
    assert read(tmp_path) == read(uninterrupted)


def test_error_of_the_fitness_is_raised_as_it_is_and_keeps_what_was_evaluated(uninterrupted, tmp_path):
    with pytest.raises(FileNotFoundError, match="the text is gone"):
        search(tmp_path, Counted(8, FileNotFoundError("the text is gone")))
    search(tmp_path)
    assert read(tmp_path) == read(uninterrupted)


SCRIPT = """
    import sys, time, types
    import hf_whittle.search.runner, hf_whittle.space.search_space
    from hf_whittle import EvolutionConfig, ParameterBin, SearchSpace, search_subnets

    class Toy:
        settings = {{"name": "toy"}}

        def __call__(self, subnet):
            time.sleep({pause})
            return int(subnet.digest, 16) / 7e13

    space = SearchSpace.from_config(types.SimpleNamespace(**{config}), "fine", layer_wise=True)
    search_subnets(None, space, bin=ParameterBin(20_000, 22_000), config=EvolutionConfig(**{settings}),
                   fitness=Toy(), output_dir=sys.argv[1], progress=False)
    assert not {{"torch", "transformers"}} & sys.modules.keys()
"""


def script(pause=0.0):
    return SCRIPT.format(pause=pause, config=vars(CONFIG), settings=SETTINGS)


def test_another_process_gives_the_same_bytes_without_importing_torch(uninterrupted, tmp_path, run_python):
    run_python(script(), tmp_path)
    assert read(tmp_path) == read(uninterrupted)


def test_killed_process_is_resumed_to_the_same_bytes(uninterrupted, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script(pause=0.05)), str(tmp_path)])
    candidates = tmp_path / "candidates.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if candidates.is_file() and candidates.read_bytes().count(b"\n") >= 8:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    known = candidates.read_bytes().count(b"\n")
    assert 8 <= known < EVALUATIONS
    fitness = Counted()
    search(tmp_path, fitness)
    assert len(fitness.asked) == EVALUATIONS - known
    assert read(tmp_path) == read(uninterrupted)


# Every algorithm


class CountedToy(small_searches.Toy):
    """Notes what it is asked, and is interrupted at one evaluation."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.asked, self.stop_at = [], stop_at

    def __call__(self, subnet, share=1.0):
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((subnet, share))
        return super().__call__(subnet, share)


each_algorithm = pytest.mark.parametrize("name", sorted(ALGORITHMS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of an uninterrupted search by each algorithm."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ALGORITHMS:
        small_searches.search(name, folder=folder / name)
    return {name: read(folder / name) for name in ALGORITHMS}


@pytest.mark.slow_after(9)
@each_algorithm
@pytest.mark.parametrize("stop_at", [0, 1, 6, 9, 14, 17])
def test_every_algorithm_goes_on_to_the_same_bytes_and_evaluates_nothing_twice(whole, tmp_path, name, stop_at):
    first, second = CountedToy(stop_at), CountedToy()
    with pytest.raises(KeyboardInterrupt):
        small_searches.search(name, first, folder=tmp_path)
    small_searches.search(name, second, folder=tmp_path)
    assert read(tmp_path) == whole[name]
    asked = first.asked + second.asked
    assert len(set(asked)) == len(asked) == whole[name]["candidates.jsonl"].count(b"\n")


@each_algorithm
def test_every_algorithm_evaluates_a_torn_last_line_anew(whole, tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        small_searches.search(name, CountedToy(13), folder=tmp_path)
    path = tmp_path / "candidates.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    fitness = CountedToy()
    small_searches.search(name, fitness, folder=tmp_path)
    assert read(tmp_path) == whole[name]
    assert len(fitness.asked) == whole[name]["candidates.jsonl"].count(b"\n") - 12


@pytest.mark.slow_after(3)
@each_algorithm
def test_several_bins_are_resumed_to_the_same_bytes(tmp_path, name):
    bins = [BIN, ParameterBin(21_000, 24_000)]
    small_searches.search(name, bin=bins, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        small_searches.search(name, CountedToy(17), bin=bins, folder=tmp_path / "resumed")
    small_searches.search(name, bin=bins, folder=tmp_path / "resumed")
    assert read(tmp_path / "resumed") == read(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(sorted(ALGORITHMS), "evolution"))
def test_search_killed_again_and_again_ends_with_the_same_bytes(whole, tmp_path, name):
    rng, candidates, kills = Random(name), tmp_path / "candidates.jsonl", 0
    script = Path(small_searches.__file__)
    while True:
        before = candidates.read_bytes().count(b"\n") if candidates.is_file() else 0
        process = warm.Popen([sys.executable, script, name, tmp_path, "0.05"])
        if kills == 3:
            assert process.wait(60) == 0
            break
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if candidates.is_file() and candidates.read_bytes().count(b"\n") > before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        kills += 1
    assert read(tmp_path) == whole[name]


# Errors


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "algorithm"),
        ({"bin": ParameterBin(20_000, 23_000)}, "bins"),
        ({"space": SearchSpace.from_config(CONFIG)}, "space"),
        ({"fitness": toy_fitness}, "fitness"),
        ({"seed": 5, "bin": ParameterBin(20_000, 23_000)}, "bins and algorithm"),
    ],
)
def test_folder_of_another_search_is_an_error_and_stays_as_it_is(uninterrupted, change, named):
    before = read(uninterrupted)
    message = f"{uninterrupted} holds a search with another {named}; choose another folder, or remove this one"
    with pytest.raises(OtherSearchError, match=re.escape(message)):
        search(uninterrupted, **change)
    assert read(uninterrupted) == before


def test_evaluations_of_another_version_are_an_error(tmp_path):
    search(tmp_path)
    path = tmp_path / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(OtherSearchError, match="was made by another version of the search: evaluation 0 is of subnet"):
        search(tmp_path)


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=re.escape(f"could not write {tmp_path / 'file' / 'search'}")):
        search(tmp_path / "file" / "search")


def test_folder_that_becomes_read_only_is_an_error_and_keeps_earlier_evaluations(uninterrupted, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Counted(3))
    with monkeypatch.context() as patch:
        patch.setattr("hf_whittle.files.atomic.tempfile.mkstemp", refuse)
        with pytest.raises(OutputError, match=r"search.json: Read-only file system.*are kept: make the folder"):
            search(tmp_path)
    assert (tmp_path / "candidates.jsonl").read_bytes().count(b"\n") == 6
    search(tmp_path)
    assert read(tmp_path) == read(uninterrupted)


FULL_DISK = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
    from hf_whittle.errors import OutputError
    try:
        exec(sys.argv[2])
    except OutputError as error:
        print(error)
"""


def test_disk_that_is_full_is_an_error_and_keeps_earlier_evaluations(uninterrupted, tmp_path, run_python):
    size = len(read(uninterrupted)["candidates.jsonl"]) // 2
    printed = run_python("    import sys\n" + FULL_DISK.format(size=size), tmp_path, textwrap.dedent(script()))
    assert f"could not write {tmp_path}: File too large. Files already written are kept" in printed
    kept = (tmp_path / "candidates.jsonl").read_bytes()
    assert kept == read(uninterrupted)["candidates.jsonl"][:size]
    fitness = Counted()
    search(tmp_path, fitness)
    assert len(fitness.asked) == EVALUATIONS - kept.count(b"\n")
    assert read(tmp_path) == read(uninterrupted)
