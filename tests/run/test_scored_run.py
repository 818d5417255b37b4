"""A search by importance in a bin of FLOPs."""

from pathlib import Path

import pytest
import torch
from broken_runs import break_off, weights_that_differ
from fixtures_run import make_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import hf_whittle.importance.scores
import hf_whittle.run.search_inputs
from hf_whittle.cost import flops_per_token
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.ledger import Ledger
from hf_whittle.run.search_inputs import SearchInputs
from hf_whittle.run.stages import search
from hf_whittle.search.result import SearchResult

SCORED = {
    "space": {"granularity": "fine", "importance": "activation"},
    "bin": {"cost": "flops", "low": 45e3, "high": 55e3},
    "training": {"max_steps": 2},
}


@pytest.fixture(scope="module")
def scored_recipe(teacher_folder, texts, tmp_path_factory):
    return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("scored"), **SCORED)


@pytest.fixture(scope="module")
def scored_results(scored_recipe):
    return run(scored_recipe, progress=False)


@pytest.mark.slow
def test_student_of_a_search_by_importance_lies_in_the_bin_of_flops(scored_recipe, scored_results):
    student = AutoModelForCausalLM.from_pretrained(scored_recipe.output_dir, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.ones(1, 32, dtype=torch.long))
    counted = counter.get_total_flops() / 32
    assert counted == scored_results["student"]["flops_per_token"]["student"] / 3
    assert 45e3 <= counted <= 55e3
    kept = scored_results["search"]["subnet"]
    assert any(not isinstance(entry, int) for entry in (kept["hidden_size"], *kept["intermediate_size"]))


def test_every_candidate_of_a_search_by_importance_lies_in_the_bin(scored_recipe, scored_results):
    config = AutoConfig.from_pretrained(scored_recipe.teacher)
    search = SearchResult.load(scored_recipe.output_dir)
    assert len(search.evaluations) == 4 + 2 * 3
    assert all(45e3 <= flops_per_token(config, e.subnet, sequence_length=32) <= 55e3 for e in search.evaluations)
    assert search.settings["space"]["importance"]["criterion"] == "activation"
    assert search.settings["bins"] == [{"cost": "FLOPs per token", "low": 45e3, "high": 55e3, "sequence_length": 32}]


def test_cost_of_a_search_by_importance_counts_its_calibration(scored_recipe, scored_results):
    config = AutoConfig.from_pretrained(scored_recipe.teacher)
    evaluations = SearchResult.load(scored_recipe.output_dir).evaluations
    found, tokens = scored_results["search"], 128  # of one evaluation, and of the calibration
    assert found["tokens_per_evaluation"] == tokens
    assert found["tokens"] == tokens * (1 + len(evaluations))
    assert found["flops"] == tokens * flops_per_token(config, sequence_length=32) + sum(
        tokens * flops_per_token(config, e.subnet, sequence_length=32) for e in evaluations
    )


@pytest.mark.slow
@pytest.mark.parametrize("importance, passes", [("magnitude", 1), ("taylor", 1 + 3)])  # cosine; forward and backward
def test_calibration_costs_as_many_passes_as_it_makes(teacher_folder, texts, tmp_path, importance, passes):
    changes = SCORED | {"space": {"granularity": "fine", "importance": importance}, "search": {"generations": 0}}
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", **changes)
    config = AutoConfig.from_pretrained(teacher_folder)
    facts = search(Inputs(recipe), Ledger(Path(recipe.output_dir)), progress=False)
    evaluated = [e.subnet for e in SearchResult.load(recipe.output_dir).evaluations]
    whole, *subnets = (flops_per_token(config, subnet, sequence_length=32) for subnet in (None, *evaluated))
    assert facts.tokens == 128 * (1 + 4)
    assert facts.flops == 128 * (passes * whole + sum(subnets))


def test_calibration_reads_no_text_that_results_are_reported_on(scored_recipe, tmp_path, monkeypatch):
    read, score = [], hf_whittle.run.search_inputs.score_importance
    monkeypatch.setattr(
        hf_whittle.run.search_inputs, "score_importance", lambda *args, **kw: read.append(args[1]) or score(*args, **kw)
    )
    inputs = Inputs(scored_recipe)
    assert SearchInputs(inputs, tmp_path, progress=False).space.importance is not None
    rows = {name: {tuple(row) for row in blocks["input_ids"]} for name, blocks in inputs.blocks.items()}
    calibration = {tuple(row) for row in read[0]["input_ids"]}
    assert len(calibration) == 4 and calibration <= rows["train"] and not calibration & (rows["search"] | rows["test"])


@pytest.mark.slow
@pytest.mark.usefixtures("default_ctrl_c")
def test_a_search_by_importance_that_broke_off_goes_on_with_the_same_scores(
    teacher_folder, texts, tmp_path, scored_recipe, scored_results, monkeypatch
):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", **SCORED)
    break_off(recipe, "interrupted in the search", monkeypatch)
    kept = SearchResult.load(recipe.output_dir).evaluations
    assert kept == SearchResult.load(scored_recipe.output_dir).evaluations[:5]

    def forbidden(*_, **__):
        raise AssertionError("this was done already")

    monkeypatch.setattr(hf_whittle.importance.scores, "_score", forbidden)
    assert run(recipe, progress=False)["search"] == scored_results["search"]
    assert weights_that_differ(scored_recipe, recipe) == []
