"""Disk errors are one error, whichever library meets them first and however it words them."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from fixtures_run import make_recipe, write_modules
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import hf_whittle.run.main
from hf_whittle.errors import DataError, OutputError
from hf_whittle.files.disk import disk_errors
from hf_whittle.run import run

BIG = torch.zeros(2**19)
WORDS = Tokenizer(models.WordLevel({str(number): number for number in range(10**5)}, unk_token="0"))


def draw(path):
    figure = Figure(figsize=(20, 20))
    figure.add_subplot().imshow(np.random.default_rng(0).random((1000, 1000)))
    figure.savefig(path, dpi=140, format="png")


def torch_into_a_file(path):
    with path.open("wb") as file:
        torch.save(BIG, file)


def rows():
    for _ in range(3000):
        yield {"text": "x" * 1000}


WRITERS = {
    "torch": lambda path: torch.save(BIG, path),
    "torch into a file": torch_into_a_file,
    "safetensors": lambda path: save_file({"x": BIG}, path),
    "numpy": lambda path: np.save(path, BIG.numpy()),
    "tokenizers": lambda path: WORDS.save(str(path)),
    "transformers' tokenizers": lambda path: PreTrainedTokenizerFast(tokenizer_object=WORDS).save_pretrained(path),
    "datasets": lambda path: Dataset.from_dict({"x": [[1] * 1000] * 1000}).save_to_disk(path),
    "datasets from a generator": lambda path: Dataset.from_generator(rows, cache_dir=str(path)),
    "matplotlib": draw,
    "Python": lambda path: path.write_bytes(bytes(2**21)),
}


@pytest.fixture
def no_large_files():
    """Limit files to 1 MB, as a quota does; more is `EFBIG`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A disk of 1 MB."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.mark.usefixtures("no_large_files")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_grow_is_an_output_error(tmp_path, writer):
    message = r"could not write .*\. Files already written are kept: .*run the same command again"
    with pytest.raises(OutputError, match=message), disk_errors(tmp_path / "file"):
        WRITERS[writer](tmp_path / "file")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_output_error(small_disk, writer):
    path = small_disk / writer.replace(" ", "-")
    message = r"could not write .*: No space left on device\. .*: free some space"
    with pytest.raises(OutputError, match=message) as caught, disk_errors(path):
        WRITERS[writer](path)
    assert caught.value.errno == errno.ENOSPC
    subprocess.run(["find", str(small_disk), "-mindepth", "1", "-delete"], check=True)


def grow(disk, kilobytes):
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_up_repeatedly_gives_the_same_student(
    small_disk, teacher_folder, tmp_path, monkeypatch
):
    """Some room is made, the recipe runs again, and so on until it finishes."""
    monkeypatch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)  # preflight would fail at once
    texts = write_modules(tmp_path / "texts")
    sections = {"heal": True, "data": {"calibration_tokens": 256}, "training": {"max_steps": 2, "save_steps": 1}}
    run(make_recipe(teacher_folder, texts, tmp_path / "whole", **sections), progress=False)
    recipe, refused = make_recipe(teacher_folder, texts, small_disk / "run", **sections), []
    try:
        for kilobytes in range(40, 4000, 120):
            grow(small_disk, kilobytes)
            try:
                run(recipe, progress=False)
                break
            except OutputError as error:
                assert "free some space, then run the same command again" in str(error)
                refused.append((small_disk / "run" / "stages" / "student").exists())
        assert len(refused) > 3 and set(refused) == {False, True}  # before and during training
        weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", small_disk / "run")]
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    finally:
        shutil.rmtree(small_disk / "run", ignore_errors=True)
        grow(small_disk, 1024)


@pytest.mark.parametrize(
    "code, advice",
    [
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "check the disk"),
        (errno.ENOTDIR, "something is in the way there"),
    ],
)
@pytest.mark.parametrize("raised", [OSError, SafetensorError, Exception, "torch"])
def test_advice_depends_on_the_number_alone(tmp_path, code, advice, raised):
    words = os.strerror(code)
    message = rf"could not write {tmp_path}: {words}.*{advice}"
    with pytest.raises(OutputError, match=message) as caught, disk_errors(tmp_path):
        if raised is OSError:
            raise OSError(code, words)
        if raised == "torch":  # its file fails in Python, and torch then cannot end its archive
            try:
                raise OSError(code, words)
            finally:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
        raise raised(f"Error while serializing: I/O error: {words} (os error {code})")
    assert caught.value.errno == code


def test_an_error_of_torch_without_a_reason_is_an_output_error_too(tmp_path):
    message = r"could not write .*Input/output error.*check the disk"
    with pytest.raises(OutputError, match=message), disk_errors(tmp_path / "deep" / "file"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        RuntimeError("CUDA out of memory"),
        KeyError("x"),
        SafetensorError("Error while deserializing header: header too small"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        DataError("too little text"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_file_elsewhere_is_named_and_a_failure_to_read_one_is_not_an_output_error(tmp_path):
    elsewhere = str(Path("/var/elsewhere/file"))
    with pytest.raises(OutputError, match=f"could not write {elsewhere}: No space left"), disk_errors(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device", elsewhere)
    with pytest.raises(PermissionError) as caught, disk_errors(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", elsewhere)
    assert not isinstance(caught.value, OutputError)


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, row):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/file")


def test_a_failure_to_read_in_a_process_that_loads_data_is_not_an_output_error(tmp_path):
    """The error raised here has neither number nor file; its text has both."""
    with pytest.raises(PermissionError, match=r"(?s)^Caught.*/data/file") as caught, disk_errors(tmp_path / "out"):
        next(iter(torch.utils.data.DataLoader(Unreadable(), num_workers=1)))
    assert not isinstance(caught.value, OutputError)
