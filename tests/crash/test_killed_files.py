"""A process killed while it writes or removes a file or folder leaves the old one, or all of the new one."""

import itertools
import json
import os

import pytest
from file_faults import KILLED, FileFaults, FileStates, contents, steady_name

from hf_whittle.files.atomic import atomic_folder, remove_folder, remove_leftovers
from hf_whittle.files.text import write_json, write_text


def write_folder(folder, text):
    with atomic_folder(folder / "model", replace=True) as temporary:
        (temporary / "deep").mkdir()
        for name in ("config", "deep/weights"):
            (temporary / name).write_text(text)


WORK = {
    "file": lambda folder: write_text(folder / "file.txt", "new"),
    "JSON": lambda folder: write_json(folder / "value.json", ["new"]),
    "folder": lambda folder: write_folder(folder, "new"),
    "removal": lambda folder: remove_folder(folder / "model"),
}


def before(folder):
    folder.mkdir()
    write_text(folder / "file.txt", "old")
    write_json(folder / "value.json", ["old"])
    write_folder(folder, "old")


def killed_at(folder, work, moment, torn):
    """Run `work` in a child process that is killed at a moment; returns whether it was killed."""
    code = in_child(folder, work, FileFaults(folder, moment, torn))
    assert code in (0, KILLED)
    return code == KILLED


def in_child(folder, work, faults, found=None):
    """Run `work` in a child process, which writes events and states into the file `found`; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            faults.arm()
            work(folder)
            faults.finish()
            if found is not None:
                found.write_text(json.dumps([faults.events, faults.states]))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("name", WORK)
def test_killed_at_every_moment_it_is_the_old_or_the_new(tmp_path, name, torn):
    before(tmp_path / "old")
    before(tmp_path / "new")
    WORK[name](tmp_path / "new")
    either = [contents(tmp_path / "old"), contents(tmp_path / "new")]
    assert either[0] != either[1]
    seen = []
    for moment in itertools.count():
        folder = tmp_path / f"killed {moment}"
        before(folder)
        if not killed_at(folder, WORK[name], moment, torn):
            break
        remove_leftovers(folder)
        assert contents(folder) in either
        seen.append(contents(folder))
        WORK[name](folder)
        assert contents(folder) == either[1]
    assert either[0] in seen and moment >= 2


def steady_contents(folder):
    return {steady_name(name): content for name, content in contents(folder).items()}


@pytest.mark.parametrize("name", WORK)
def test_copies_at_each_change_are_what_kills_leave(tmp_path, name):
    before(tmp_path / "folder")
    faults = FileStates(tmp_path / "folder", tmp_path / "copies")
    assert in_child(tmp_path / "folder", WORK[name], faults, tmp_path / "found") == 0
    events, states = json.loads((tmp_path / "found").read_text())
    left = []
    for moment, (_, _, tearable) in enumerate(events):
        for torn in (False, True) if tearable else (False,):
            folder = tmp_path / f"killed {moment} {torn}"
            before(folder)
            assert killed_at(folder, WORK[name], moment, torn)
            left.append(steady_contents(folder))
    copies = [steady_contents(faults.copy_of(*state)) for state in states]
    assert len(copies) >= 2 and all(one in left for one in copies) and all(one in copies for one in left)


def test_the_next_to_write_a_folder_puts_back_what_it_was_to_replace(tmp_path):
    """Even if leftovers of a killed process were not removed before the next one failed."""
    before(tmp_path / "folder")
    (tmp_path / "folder" / "model").rename(tmp_path / "folder" / "_partial-model.before")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder" / "model", replace=True):
        raise RuntimeError
    assert (tmp_path / "folder" / "model" / "config").read_text() == "old"
