"""Files appear whole or not at all."""

import errno
import os
import stat

import pytest

from hf_whittle.errors import OutputError, WhittleError
from hf_whittle.files.atomic import atomic_folder, atomic_path, remove_leftovers
from hf_whittle.files.disk import disk_errors
from hf_whittle.files.text import read_json, write_json, write_text


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def raise_disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_and_json_come_back_as_they_were(tmp_path):
    value = {'é\n"': [1, 2.5, None, True], "nested": {"中": "x"}}
    write_json(tmp_path / "new" / "folder" / "value.json", value)
    write_text(tmp_path / "text", "naïve\n")
    assert read_json(tmp_path / "new" / "folder" / "value.json") == value
    assert (tmp_path / "text").read_bytes() == "naïve\n".encode()


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "file.txt", "before")
    write_text(tmp_path / "file.txt", "after")
    assert (tmp_path / "file.txt").read_text() == "after" and names_in(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_file_as_it_was(tmp_path, error):
    write_text(tmp_path / "file", "before")
    with pytest.raises(error), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half of")
        raise error
    assert (tmp_path / "file").read_text() == "before" and names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_folder_as_it_was(tmp_path, error):
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "one").write_text("before")
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "two").write_text("half of")
        raise error
    assert names_in(tmp_path) == ["folder"] and names_in(tmp_path / "folder") == ["one"]


def test_a_folder_replaces_the_one_before_where_that_is_asked_for(tmp_path):
    for name in ("one", "two"):
        with atomic_folder(tmp_path / "deep" / "folder", replace=True) as temporary:
            assert not (tmp_path / "deep" / "folder" / name).exists()
            (temporary / name).write_text(name)
    assert names_in(tmp_path / "deep") == ["folder"] and names_in(tmp_path / "deep" / "folder") == ["two"]


def test_a_folder_that_is_not_empty_by_then_is_left_alone(tmp_path):
    with (
        pytest.raises(OutputError, match=r"Directory not empty.*in the way"),
        atomic_folder(tmp_path / "folder") as new,
    ):
        (new / "mine").write_text("x")
        write_text(tmp_path / "folder" / "yours", "y")
    assert names_in(tmp_path) == ["folder"] and names_in(tmp_path / "folder") == ["yours"]


def test_an_empty_folder_keeps_its_mode(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o2770)
    with atomic_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o2770


def test_modes_are_those_of_a_file_made_by_hand(tmp_path):
    by_hand, folder_by_hand = tmp_path / "by hand", tmp_path / "folder by hand"
    by_hand.write_text("x")
    folder_by_hand.mkdir()
    write_text(tmp_path / "file", "x")
    with atomic_folder(tmp_path / "folder"):
        pass
    mode = lambda path: stat.S_IMODE(path.stat().st_mode)  # noqa: E731
    assert mode(tmp_path / "file") == mode(by_hand) and mode(tmp_path / "folder") == mode(folder_by_hand)


def test_disk_full_is_an_output_error_that_names_the_file(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "before")
    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OutputError, match=r"could not write .*file: No space left on device.*run the same") as caught:
        write_text(tmp_path / "file", "after")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError) and isinstance(caught.value, WhittleError)
    assert (tmp_path / "file").read_text() == "before" and names_in(tmp_path) == ["file"]


def test_disk_full_in_a_folder_is_an_output_error_that_names_it(tmp_path):
    with (
        pytest.raises(OutputError, match=r"could not write .*folder: No space left"),
        atomic_folder(tmp_path / "folder"),
    ):
        raise_disk_full()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: atomic_folder(path).__enter__()])
def test_a_parent_that_is_a_file_is_an_output_error(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"could not write .*inside"):
        write(tmp_path / "file" / "inside")


def test_an_output_error_is_not_wrapped_twice(tmp_path):
    first = OutputError("the first")
    with pytest.raises(OutputError, match="the first") as caught, disk_errors(tmp_path):
        raise first
    assert caught.value is first


def test_a_folder_that_another_process_makes_is_left_alone(tmp_path, run_python):
    make = """
        import sys
        from hf_whittle.files.atomic import atomic_folder, remove_leftovers
        remove_leftovers(sys.argv[1])
        with atomic_folder(sys.argv[1] + "/model"):
            pass
    """
    with atomic_folder(tmp_path / "model") as new:
        (new / "mine").write_text("x")
        with pytest.raises(AssertionError, match="model is being written by another process"):
            run_python(make, tmp_path)
        assert (new / "mine").is_file()
    assert names_in(tmp_path) == ["model"] and names_in(tmp_path / "model") == ["mine"]


def test_what_killed_processes_left_is_removed_or_put_back(tmp_path):
    for name in ("_partial-new", "_partial-old", "_partial-old.before", "_partial-kept.before", "kept"):
        (tmp_path / name).mkdir()
    for name in ("_partial-file.12345678.json", "_partial-new.lock", "_partial-gone.lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "_partial-old.before" / "mine").write_text("")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["kept", "old"] and names_in(tmp_path / "old") == ["mine"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_fsync_is_written_nonetheless(tmp_path, monkeypatch, code):
    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "file", "text")
    with atomic_folder(tmp_path / "folder") as new:
        (new / "file").write_text("text")
    assert names_in(tmp_path) == ["file", "folder"]
