"""A small recipe with every stage, planned and run once."""

import pytest
from datasets import disable_progress_bars
from fixtures_run import make_recipe, write_modules

from hf_whittle.plan import plan_recipe
from hf_whittle.recipe import Recipe
from hf_whittle.run import run

SECTIONS = {
    "search": {
        "algorithm": "additive",
        "fitness": "healed-perplexity",
        "generations": 1,
        "shares": [0.5, 1.0],
        "sizes": [2, 1],
        "answers": 2,
    },
    "heal": True,
    "baseline": True,
}


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    disable_progress_bars()
    return write_modules(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def make(teacher_folder, texts, tmp_path_factory):
    """A function that makes the recipe, with some keys or sections replaced."""

    def make(**changes):
        folder = tmp_path_factory.mktemp("plan") / "run"
        values = make_recipe(teacher_folder, texts, folder, data={"calibration_tokens": 512}).to_dict()
        return Recipe.from_dict(values | SECTIONS | changes)

    return make


@pytest.fixture(scope="session")
def recipe(make):
    return make()


@pytest.fixture(scope="session")
def results(recipe):
    return run(recipe, progress=False)


@pytest.fixture(scope="session")
def plan(recipe):
    return plan_recipe(recipe)
