"""The search of a recipe alone, from which a run goes on."""

import json
from pathlib import Path

import pytest

import hf_whittle.run.main
import hf_whittle.run.stages
from hf_whittle import SubnetConfig
from hf_whittle.errors import OutputError, RecipeError
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.recipe import Recipe
from hf_whittle.run import run, search


def bytes_of(folder):
    """The files of a run that depend on no time and no folder, by name."""
    names = ("model.safetensors", "search.json", "candidates.jsonl", "subnet.json", "config.json", "search.png")
    return {name: (Path(folder) / name).read_bytes() for name in names}


def without_time(section):
    return {name: value for name, value in section.items() if name != "seconds"}


@pytest.mark.slow
def test_a_run_goes_on_from_the_search_and_gives_the_bytes_of_an_uninterrupted_one(
    same_recipe, folder, recipe, results, monkeypatch
):
    facts = search(same_recipe, progress=False)
    output = Path(same_recipe.output_dir)
    assert without_time(facts) == without_time(results["search"]) and not (output / "model.safetensors").exists()
    assert SubnetConfig.from_pretrained(output).to_dict() == facts["subnet"]
    assert not list((output / "stages").glob("*initial*"))
    monkeypatch.setattr(hf_whittle.run.stages, "search_subnets", None)  # which is not called again
    again = run(same_recipe, progress=False)
    assert bytes_of(output) == bytes_of(folder)
    for name, section in again.items():
        assert without_time(section) == without_time(results[name]), name
    assert json.loads((output / "results.json").read_text()) == again


@pytest.mark.slow
def test_an_interrupted_search_goes_on(same_recipe, results, monkeypatch):
    evaluated, evaluate = [], Perplexity.__call__

    def interrupted(self, *args):
        evaluated.append(args)
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return evaluate(self, *args)

    monkeypatch.setattr(Perplexity, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(same_recipe, progress=False)
    assert without_time(search(same_recipe, progress=False)) == without_time(results["search"])
    assert len(evaluated) == 4 + results["search"]["evaluations"] - 3


@pytest.mark.slow
def test_a_search_needs_no_training_that_works(same_recipe, results):
    recipe = Recipe.from_dict(same_recipe.to_dict() | {"training": {"max_steps": 1, "optim": "grokadamw"}})
    assert search(recipe, progress=False)["subnet"] == results["search"]["subnet"]
    with pytest.raises(RecipeError, match=r"^training: a trial in small"):
        run(recipe, progress=False)


@pytest.mark.slow
def test_a_run_of_another_search_does_not_go_on_from_it(same_recipe):
    search(same_recipe, progress=False)
    values = same_recipe.to_dict()
    values["bin"] = {"low": 31e3, "high": 40e3}
    with pytest.raises(OutputError, match="the run of a recipe with another bin; choose another output_dir"):
        run(Recipe.from_dict(values), progress=False)


def test_a_given_student_is_not_searched_for(same_recipe):
    with pytest.raises(RecipeError, match=r"^student: it is given, so there is nothing to search for"):
        search(same_recipe.with_student("some/student"))
