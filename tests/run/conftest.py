"""A small run, done once, and a recipe of the same run in another folder."""

import signal
from pathlib import Path

import pytest
from datasets import disable_progress_bars
from fixtures_run import make_recipe, write_modules
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

from hf_whittle.run import run

DRAW = Figure.savefig


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Pictures that are not drawn, which takes longer than a search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b"a picture"))
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    disable_progress_bars()
    return write_modules(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def recipe(teacher_folder, texts, tmp_path_factory):
    return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("run") / "student-of-mine", baseline=True)


@pytest.fixture(scope="session")
def results(recipe):
    """Results of a run that was not interrupted, and whose pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAW)
        return run(recipe, progress=False)


@pytest.fixture(scope="session")
def folder(recipe, results):
    return Path(recipe.output_dir)


@pytest.fixture(scope="session")
def student(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def same_recipe(teacher_folder, texts, tmp_path):
    """The recipe of the uninterrupted run in another folder, without its baseline."""
    return make_recipe(teacher_folder, texts, tmp_path / "run")


@pytest.fixture
def default_ctrl_c():
    """Ctrl-C as Python has it, before the test and after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
