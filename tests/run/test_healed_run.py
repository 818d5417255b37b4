"""A search in stages whose student is healed: costs, probes, and training text alone."""

import dataclasses
import json
import math
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from broken_runs import break_off, weights_that_differ
from fixtures_run import FEW_IN_STAGES, make_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import hf_whittle
from hf_whittle import HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.architectures.dimensions import CHANNELS
from hf_whittle.cost import flops_per_token
from hf_whittle.errors import DataError, OutputError, VocabularyError
from hf_whittle.evaluation import as_input_ids, cross_entropy
from hf_whittle.extraction import student as student_module
from hf_whittle.fitness.healed import SupernetMoments
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.healing.cost import healing_flops
from hf_whittle.healing.healer import split_blocks
from hf_whittle.recipe import Recipe
from hf_whittle.run import run
from hf_whittle.run.changes import check_changes
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.ledger import Ledger
from hf_whittle.run.search_inputs import SearchInputs
from hf_whittle.run.stages import extract, healing, search
from hf_whittle.search.result import SearchResult


@pytest.fixture(scope="module")
def healed_recipe(texts):
    """A function that makes the recipe into a folder, with the demo's teacher: healing a random one helps little."""

    def make(folder, **changes):
        teacher = Path(hf_whittle.__file__).parent / "demo" / "teacher"
        sections = {"data": {"calibration_tokens": 1024}, "bin": {"low": 800e3, "high": 880e3}}
        values = make_recipe(teacher, texts, folder, **sections, training={"max_steps": 2}, baseline=True).to_dict()
        probe = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3}
        search = {**FEW_IN_STAGES, "fitness": "staged", "batch_size": 4, "probe": probe}
        baseline = {"learning_rate": 5e-4}
        return Recipe.from_dict(values | {"search": search, "heal": True, "baseline": baseline} | changes)

    return make


@pytest.fixture(scope="module")
def healed(healed_recipe, tmp_path_factory):
    """A run of that recipe: the recipe and its results."""
    recipe = healed_recipe(tmp_path_factory.mktemp("healed") / "run")
    return recipe, run(recipe, progress=False)


@pytest.mark.slow
def test_baseline_is_trained_with_its_own_settings_and_a_probe_with_those_of_training(healed, healed_recipe, tmp_path):
    recipe, results = healed
    assert results["baseline"]["arguments"]["learning_rate"] == 5e-4
    rate = results["student"]["arguments"]["learning_rate"]
    assert rate == recipe.training_arguments(tmp_path).learning_rate != 5e-4
    recipe = healed_recipe(tmp_path / "run")
    recipe.search.probe.pop("learning_rate")
    assert recipe.probe_config.learning_rate == rate


@pytest.mark.slow
def test_a_baseline_that_is_trained_is_not_passed_off_as_another(healed):
    recipe, folder = healed[0], Path(healed[0].output_dir)
    with pytest.raises(OutputError, match="holds the run of a recipe with another baseline"):
        check_changes(folder, dataclasses.replace(recipe, baseline={"learning_rate": 1e-4}))
    check_changes(folder, dataclasses.replace(recipe, baseline=False))
    check_changes(folder, recipe)


def test_student_starts_healed_and_healing_is_judged_on_text_it_was_not_fitted_to(healed):
    recipe, results = healed
    inputs, folder, facts = Inputs(recipe), Path(recipe.output_dir), results["healing"]
    report = json.loads((folder / "stages" / "initial" / "healing.json").read_text())
    assert facts == {name: report[name] for name in facts if name != "flops"} | {"flops": facts["flops"]}
    assert json.loads((folder / "healing.json").read_text()) == report
    assert facts["tokens"] + facts["held_out_tokens"] == 1024
    student = AutoModelForCausalLM.from_pretrained(folder / "stages" / "initial")
    sliced = extract_subnet(inputs.supernet, SubnetConfig.from_dict(results["search"]["subnet"]))
    _, held_out = split_blocks(as_input_ids(inputs.healing_blocks, student.config.vocab_size), 0.2)
    assert facts["is_healed"] and facts["perplexity_after"] < facts["perplexity_before"]
    assert math.exp(cross_entropy(student, held_out)) == pytest.approx(facts["perplexity_after"], rel=1e-4)
    assert math.exp(cross_entropy(sliced, held_out)) == pytest.approx(facts["perplexity_before"], rel=1e-4)
    test = as_input_ids(inputs.blocks["test"], student.config.vocab_size)
    start = results["student"]["curve"][0]["perplexity"]
    assert math.exp(cross_entropy(student, test)) == pytest.approx(start, rel=1e-3)


def test_perplexity_of_a_healed_run_is_that_of_the_sliced_subnet(healed):
    recipe, results = healed
    inputs, best = Inputs(recipe), SearchResult.load(recipe.output_dir).best
    perplexity = Perplexity(inputs.supernet, inputs.blocks["search"])(best)
    assert results["search"]["perplexity"] == pytest.approx(perplexity, rel=1e-6)


def test_cost_of_a_search_in_stages_counts_what_prepared_it_once(healed):
    recipe, results = healed
    config = AutoConfig.from_pretrained(recipe.teacher)
    result, steps = SearchResult.load(recipe.output_dir), 3 * 2 * 32
    shares = [evaluation.share for evaluation in result.evaluations]
    assert shares == [0.0625] * 3 + [0.25] * 2 + [1.0] + [0.0625] * 3 + [0.25] * 2 + [1.0]
    assert [e.tokens for e in result.evaluations] == [128 + (share == 1) * steps for share in shares]
    assert results["search"]["tokens_per_evaluation"] == 128 + steps
    assert results["search"]["tokens"] == 1024 + steps + sum(e.tokens for e in result.evaluations)
    assert results["search"]["flops"] == result.flops > (1024 + steps) * flops_per_token(config, sequence_length=32)


@pytest.mark.slow
def test_a_student_that_healing_does_not_help_starts_as_sliced(healed_recipe, healed, tmp_path, monkeypatch):
    heal = student_module.heal_weights

    def worse(teacher, subnet, sliced, *args):
        _, report = heal(teacher, subnet, sliced, *args)
        return sliced, dataclasses.replace(report, is_healed=False, perplexity_after=9e9)

    monkeypatch.setattr(student_module, "heal_weights", worse)
    inputs, ledger = Inputs(healed_recipe(tmp_path / "run")), Ledger(tmp_path / "run")
    shutil.copytree(healed[0].output_dir, ledger.folder)
    shutil.rmtree(ledger.stages / "initial")
    student = AutoModelForCausalLM.from_pretrained(extract(inputs, ledger, progress=False))
    facts = healing(inputs, ledger)
    assert not facts.is_healed and facts.perplexity_after == 9e9
    sliced = extract_subnet(inputs.supernet, SearchResult.load(ledger.folder).best).state_dict()
    assert all(weight.equal(sliced[name]) for name, weight in student.state_dict().items())


def test_healing_is_part_of_the_cost_of_the_student(healed):
    _, results = healed
    if "student_flops" in results["to_match"]:
        assert results["to_match"]["student_flops"]["healing"] == results["healing"]["flops"]


@pytest.mark.slow
def test_healing_and_probes_read_training_text_alone(healed, tmp_path):
    inputs = Inputs(healed[0])
    probe = SearchInputs(inputs, tmp_path, progress=False).fitness("probe")
    rows = {name: {tuple(row) for row in blocks["input_ids"]} for name, blocks in inputs.blocks.items()}
    read = {tuple(row) for row in inputs.healing_blocks["input_ids"]}
    read |= {tuple(row.tolist()) for row in probe.input_ids}
    assert len(read) > 16 and read <= rows["train"] and not read & (rows["search"] | rows["test"])


@pytest.mark.slow
def test_moments_are_freed_after_the_search(healed_recipe, tmp_path, monkeypatch):
    made, gather = [], SupernetMoments.__init__

    def recorded(moments, *args):
        made.append(weakref.ref(moments))
        gather(moments, *args)

    monkeypatch.setattr(SupernetMoments, "__init__", recorded)
    section = {"algorithm": "random", "evaluations": 1, "fitness": "healed-perplexity", "batch_size": 4}
    inputs = Inputs(healed_recipe(tmp_path / "run", search=section))
    search(inputs, Ledger(tmp_path / "run"), progress=False)
    assert [moments() for moments in made] == [None]


def test_a_probe_takes_the_loss_of_the_training_unless_the_recipe_says_otherwise(healed_recipe, tmp_path):
    training = {"alpha": 0.5, "beta": 0.3, "temperature": 1.5}
    search = {"algorithm": "random", "fitness": "probe", "probe": {"beta": 0.25, "steps": 7}}
    config = healed_recipe(tmp_path, training=training, search=search).probe_config
    assert (config.alpha, config.beta, config.temperature, config.steps) == (0.5, 0.25, 1.5, 7)


@pytest.mark.slow
def test_a_probe_learns_from_the_teacher_of_the_recipe(healed_recipe, teacher_folder, tmp_path):
    changes = {"supernet": str(teacher_folder), "teacher": str(tmp_path / "teacher")}
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    teacher.get_output_embeddings().weight.data.mul_(0.5)
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    inputs = Inputs(healed_recipe(tmp_path / "run", **changes))
    _, head = SearchInputs(inputs, tmp_path, progress=False).fitness("probe")._targets
    torch.testing.assert_close(head.weight, teacher.get_output_embeddings().weight, rtol=0, atol=0)


def test_a_probe_whose_teacher_cannot_teach_is_found_before_the_search(healed_recipe, teacher_folder, tmp_path):
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size += 20
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    search = {"algorithm": "random", "fitness": "probe", "probe": {"beta": 0.5}}
    changes = {"supernet": str(teacher_folder), "teacher": str(tmp_path / "teacher"), "training": {"beta": 0.0}}
    with pytest.raises(VocabularyError, match="has 320 entries, that of the super-network 300; candidates learn"):
        run(healed_recipe(tmp_path / "run", **changes, search=search), progress=False)


@pytest.mark.slow
def test_too_little_text_for_a_probe_is_an_error(healed_recipe, tmp_path):
    search = {"algorithm": "random", "evaluations": 1, "fitness": "probe", "probe": {"steps": 1000}}
    with pytest.raises(DataError, match="1000 steps of 16 blocks need 16000 blocks of text to train on, got"):
        run(healed_recipe(tmp_path / "run", search=search), progress=False)


@pytest.mark.parametrize("heal", [False, {"head": False}])
def test_another_healing_in_the_folder_is_an_error(healed_recipe, healed, heal):
    with pytest.raises(OutputError, match="holds the run of a recipe with another heal; choose another"):
        run(healed_recipe(healed[0].output_dir, heal=heal), progress=False)


def test_the_same_healing_spelled_out_goes_on(healed_recipe, healed):
    folder = Path(healed[0].output_dir)
    check_changes(folder, healed_recipe(folder, heal=healed[0].to_dict()["heal"]))


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["interrupted before extraction", "interrupted before training"])
def test_a_healed_run_that_broke_off_goes_on_to_the_same_student(healed_recipe, healed, tmp_path, broken, monkeypatch):
    recipe, results = healed
    again = healed_recipe(tmp_path / "run", baseline=False)
    break_off(again, broken, monkeypatch)
    got = run(again, progress=False)
    assert weights_that_differ(recipe, again) == []
    assert got["healing"] == results["healing"] and got["search"] == results["search"]


def test_card_of_a_healed_run_tells_how_it_was_found(healed):
    recipe, results = healed
    page = (Path(recipe.output_dir) / "README.md").read_text()
    assert "perplexity of the student after 3 steps of training, among the candidates" in page
    assert f"fell from {results['healing']['perplexity_before']:.4g} to" in page


FEWER_CHANNELS = SubnetConfig(40, [0, 1, 3], [3, 2, 4], [128, 100, 200])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subnet", "settings", "is_parallel"),
    [
        (FEWER_CHANNELS, {}, True),
        (FEWER_CHANNELS, {}, False),
        (FEWER_CHANNELS, {"basis": "channels"}, True),
        (FEWER_CHANNELS, {"inputs": False}, False),
        (FEWER_CHANNELS, {"outputs": False, "head": False}, True),
        (SubnetConfig(64, [0, 3], 4, 200), {}, False),
        (SubnetConfig(64, [1, 3], 4, 200), {"basis": "channels"}, False),
    ],
    ids=str,
)
def test_cost_of_healing_is_what_it_computes_and_little_more(subnet, settings, is_parallel):
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    config = GPTNeoXConfig(**sizes, vocab_size=99, use_parallel_residual=is_parallel)
    config._attn_implementation = "eager"
    input_ids = torch.randint(0, 99, (20, 32), generator=torch.Generator().manual_seed(0))
    model = GPTNeoXForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter:
        student = extract_subnet(
            model, subnet, heal=HealingConfig(**settings), calibration_dataset=input_ids, progress=False
        )
    counted = counter.get_total_flops()
    assert counted <= healing_flops(config, subnet, student.healing.to_dict(), 32) <= 1.4 * counted


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["principal", "channels"])
def test_cost_of_healing_with_tied_embeddings_is_what_it_computes(basis):
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    config = LlamaConfig(**sizes, vocab_size=99, tie_word_embeddings=True, attn_implementation="eager")
    subnet = SubnetConfig.full(config).with_layers([0, 1, 3]).replaced({CHANNELS: 40})
    input_ids = torch.randint(0, 99, (20, 32), generator=torch.Generator().manual_seed(0))
    model = LlamaForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter:
        student = extract_subnet(
            model, subnet, heal=HealingConfig(basis=basis), calibration_dataset=input_ids, progress=False
        )
    report = student.healing.to_dict()
    assert report["basis"] == basis
    counted = counter.get_total_flops()
    assert counted <= healing_flops(config, subnet, report, 32) <= 1.4 * counted
