"""A run in several processes: it gives the student of one, and goes on in another number of them."""

import json
import math
from pathlib import Path

import pytest
from fixtures_processes import ENDED, on_two_processes, torchrun
from fixtures_run import make_recipe
from safetensors.torch import load_file

from hf_whittle.errors import RecipeError
from hf_whittle.run import run
from hf_whittle.run.batches import own_batch

SCRIPT = Path(__file__).with_name("run_in_processes.py")
SECTIONS = {
    "heal": True,
    "baseline": True,
    "data": {"calibration_tokens": 512},
    "search": {"fitness": "healed-perplexity"},
    "training": {"gradient_accumulation_steps": 2, "save_steps": 2},
}


@pytest.fixture(scope="module")
def make(teacher_folder, texts, tmp_path_factory):
    """Make the recipe of a run in a folder of its own."""

    def make(name, **sections):
        return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("runs") / name, **{**SECTIONS, **sections})

    return make


@pytest.fixture(scope="module")
def by_one(make):
    """Results and weights of a run in one process."""
    recipe = make("one")
    return run(recipe, progress=False), weights_of(recipe)


def weights_of(recipe):
    return load_file(Path(recipe.output_dir) / "model.safetensors")


def saved(recipe):
    path = Path(recipe.output_dir).with_suffix(".yaml")
    recipe.save(path)
    return path


def assert_same_run(recipe, results, by_one):
    expected, weights = by_one
    found = weights_of(recipe)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name] - weight).abs().max() < 1e-5, name
    assert results["search"] | {"seconds": 0} == expected["search"] | {"seconds": 0}
    assert results["teacher"]["perplexity"] == pytest.approx(expected["teacher"]["perplexity"], rel=1e-6)
    for name in ("student", "baseline"):
        for got, point in zip(results[name]["curve"], expected[name]["curve"], strict=True):
            assert (got["step"], got["tokens"]) == (point["step"], point["tokens"])
            assert got["perplexity"] == pytest.approx(point["perplexity"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(make, by_one):
    recipe = make("two")
    output = on_two_processes(SCRIPT, saved(recipe))
    assert output.count(ENDED) == 2 and output.count("The student, its card and the search are in") == 1
    assert_same_run(recipe, json.loads((Path(recipe.output_dir) / "results.json").read_text()), by_one)
