"""The cards in `model_cards/` are those rendered from their result files today."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread

from hf_whittle.hub.saving import describe
from hf_whittle.recipe import Recipe
from hf_whittle.record.results import Results

MODEL_CARDS = Path(__file__).parent.parent / "model_cards"
FOLDERS = sorted(path.parent for path in MODEL_CARDS.glob("*/results.json"))
NAMES = [folder.name for folder in FOLDERS]


@pytest.fixture(params=FOLDERS, ids=NAMES)
def folder(request):
    return request.param


@pytest.fixture
def rendered(folder, tmp_path):
    """A copy of the folder with page and pictures made again."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("README.md", "*.png"))
    describe(copy)
    return copy


def test_there_are_cards_of_a_stock_a_layer_wise_and_a_recovered_student():
    pages = {folder.name: (folder / "README.md").read_text(encoding="utf-8") for folder in FOLDERS}
    assert len([page for page in pages.values() if "a stock `GPTNeoXForCausalLM`" in page]) >= 1
    assert len([page for page in pages.values() if "modeling code of its own" in page]) >= 1
    assert len([page for page in pages.values() if "LoRA adapters" in page]) >= 1


@pytest.mark.slow
def test_a_page_is_the_one_rendered_now(folder, rendered):
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in rendered.iterdir()}
    assert (folder / "README.md").read_text("utf-8") == (rendered / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", [folder.name for folder in FOLDERS if (folder / "recipe.yaml").is_file()])
def test_the_recipe_beside_a_page_can_be_run(name):
    assert Recipe.load(MODEL_CARDS / name / "recipe.yaml", teacher="teacher", output_dir="again").bin is not None


@pytest.mark.slow
def test_pictures_are_those_drawn_now(folder, rendered):
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert {"search.png", "architecture.png", "training.png"} <= set(pictures)
    for name in pictures:
        before, now = imread(folder / name), imread(rendered / name)
        assert before.shape == now.shape and np.abs(before - now).mean() < 1e-3, name


def test_a_page_has_the_numbers_of_its_results_and_no_path(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    last = Results.load(folder).student.curve[-1].perplexity
    assert f"{last:.4g}" in page
    assert ModelCard(page).data.eval_results[0].metric_value == pytest.approx(last, abs=1e-4)
    for path in folder.iterdir():
        if path.suffix != ".png":
            assert not re.search(r"(?<![\w.:/<])/\w+/\w+", path.read_text(encoding="utf-8")), path.name
