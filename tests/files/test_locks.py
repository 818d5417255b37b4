"""A folder has one writer: others fail at once, blocks nest, and a lock ends with its process."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import filelock
import pytest

import hf_whittle.files.locks
from hf_whittle.errors import OutputError
from hf_whittle.files.locks import folder_lock

HOLD = """
    import signal, sys, time
    from hf_whittle.files.locks import folder_lock
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    with folder_lock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `tmp_path / "run"`."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_writes_is_an_error_that_names_it(tmp_path, holder):
    for path in (tmp_path / "run", tmp_path / "other" / ".." / "run"):
        message = r"run is being written by another process or thread; wait"
        with pytest.raises(OutputError, match=message) as caught, folder_lock(path):
            raise AssertionError("not to be entered")
        assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lock_ends_with_its_process_even_a_killed_one(tmp_path, holder, end):
    holder.send_signal(end)
    holder.wait()
    with folder_lock(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_blocks_may_be_nested_and_the_outer_one_ends_the_lock(tmp_path, run_python):
    folder = tmp_path / "new" / "run"
    try_it = """
        import sys
        from hf_whittle.errors import OutputError
        from hf_whittle.files.locks import folder_lock
        try:
            with folder_lock(sys.argv[1]):
                print("free")
        except OutputError:
            print("held")
    """
    with folder_lock(folder):
        with folder_lock(str(folder)):
            assert run_python(try_it, folder) == "held\n"
        assert run_python(try_it, folder) == "held\n"
        with folder_lock(folder / "inner"):  # another folder
            pass
    assert run_python(try_it, folder) == "free\n"
    assert [path.name for path in folder.iterdir()] == ["inner"]


def test_a_block_that_fails_releases_the_folder(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), folder_lock(tmp_path):
            raise KeyboardInterrupt


def test_two_threads_do_not_write_a_folder_at_once_and_any_thread_may(tmp_path):
    errors = []

    def work():
        try:
            with folder_lock(tmp_path):
                errors.append(None)
        except OutputError as error:
            errors.append(error)

    def in_a_thread():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    with folder_lock(tmp_path):
        in_a_thread()
    in_a_thread()
    assert isinstance(errors[0], OutputError) and errors[1] is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_take_the_lock_of_its_parent_for_its_own(tmp_path, run_python):
    script = """
        import os, sys
        from hf_whittle.errors import OutputError
        from hf_whittle.files.locks import folder_lock
        with folder_lock(sys.argv[1]):
            child = os.fork()
            if not child:
                try:
                    with folder_lock(sys.argv[1]):
                        os._exit(0)
                except OutputError:
                    os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(script, tmp_path / "run") == "7\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_gives_a_warning_and_no_error(tmp_path, monkeypatch, caplog, error):
    class NoLock(filelock.FileLock):
        def acquire(self, **kwargs):
            raise error

    monkeypatch.setattr(hf_whittle.files.locks, "FileLock", NoLock)
    done = []
    with caplog.at_level("WARNING"), folder_lock(tmp_path):
        done.append(1)
    assert done and f"{tmp_path} lies on a file system without locks" in caplog.text


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The last holder removes the file after the next one opened it and before that one locked it."""
    taken = []

    class Late(filelock.FileLock):
        def acquire(self, **kwargs):
            super().acquire(**kwargs)
            taken.append(self)
            if len(taken) == 1:
                (tmp_path / "_hf_whittle.lock").unlink()

    monkeypatch.setattr(hf_whittle.files.locks, "FileLock", Late)
    with folder_lock(tmp_path):
        assert len(taken) == 2 and not taken[0].is_locked and taken[1].is_locked


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"could not write .*inside: Not a directory"),
        folder_lock(tmp_path / "file" / "inside"),
    ):
        pass
