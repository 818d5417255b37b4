"""The main job end to end: what it writes is what it measured, and an interruption changes nothing."""

import dataclasses
import errno
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from datasets import disable_progress_bars
from fixtures_run import make_recipe, write_modules
from fixtures_slow import slow_but
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

import hf_whittle.files.atomic
import hf_whittle.importance.scores
import hf_whittle.plots
import hf_whittle.run.stages
import hf_whittle.search.archive
from hf_whittle import HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.cli import main
from hf_whittle.cost import flops_per_token, training_flops_per_token
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import (
    ArchitectureError,
    BinError,
    CheckpointError,
    DataError,
    OutputError,
    RecipeError,
    VocabularyError,
)
from hf_whittle.evaluation import as_input_ids, cross_entropy
from hf_whittle.extraction import student as student_module
from hf_whittle.files.locks import folder_lock
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.healing.cost import healing_flops
from hf_whittle.healing.healer import split_blocks
from hf_whittle.recipe import Recipe
from hf_whittle.recipe.sections import FITNESSES
from hf_whittle.record.facts import Environment
from hf_whittle.run import run
from hf_whittle.run.stages import Run
from hf_whittle.search.result import SearchResult

FEW_IN_STAGES = {"algorithm": "multi-fidelity", "generations": 1, "initial": 1, "sizes": [3, 2, 1]}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    disable_progress_bars()
    return write_modules(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def recipe(teacher_folder, texts, tmp_path_factory):
    return make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("run") / "student-of-mine", baseline=True)


@pytest.fixture(scope="module")
def results(recipe):
    """What one uninterrupted run gives."""
    return run(recipe, progress=False)


@pytest.fixture(scope="module")
def folder(recipe, results):
    return Run(recipe).folder


@pytest.fixture(scope="module")
def student(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def same_recipe(teacher_folder, texts, tmp_path):
    """The recipe of the uninterrupted run in another folder, without its baseline."""
    return make_recipe(teacher_folder, texts, tmp_path / "run")


def test_results_on_disk_are_those_returned(folder, results):
    assert json.loads((folder / "results.json").read_text()) == results


def test_student_loads_and_has_the_reported_perplexity(folder, recipe, results, student):
    blocks = as_input_ids(Run(recipe).blocks["test"], student.config.vocab_size)
    last = results["student"]["curve"][-1]
    assert math.exp(cross_entropy(student, blocks)) == pytest.approx(last["perplexity"], rel=1e-3)
    assert last["step"] == 6 and last["tokens"] == results["student"]["tokens"] == 6 * 2 * 32
    tokenizer, original = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(recipe.teacher)
    assert tokenizer("import os")["input_ids"] == original("import os")["input_ids"]


def test_student_is_written_as_older_versions_of_transformers_read_it(folder, results):
    names = load_file(folder / "model.safetensors").keys()
    assert "embed_out.weight" in names and "lm_head.weight" not in names
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_teacher_has_the_reported_perplexity(recipe, results):
    teacher = AutoModelForCausalLM.from_pretrained(recipe.teacher)
    blocks = as_input_ids(Run(recipe).blocks["test"], teacher.config.vocab_size)
    assert math.exp(cross_entropy(teacher, blocks)) == pytest.approx(results["teacher"]["perplexity"], rel=1e-4)
    assert results["teacher"]["parameters"] == sum(p.numel() for p in teacher.parameters())
    assert results["teacher"]["test_tokens"] == blocks.numel()


def test_parameters_are_counted_and_in_the_bin(recipe, results, student):
    counted = sum(parameter.numel() for parameter in student.parameters())
    assert counted == results["student"]["parameters"] == results["baseline"]["parameters"]
    assert counted == results["search"]["parameters"] and recipe.bin.low <= counted <= recipe.bin.high


def test_search_facts_are_those_of_the_search(folder, recipe, results):
    search, found = SearchResult.load(folder), results["search"]
    config = AutoModelForCausalLM.from_pretrained(recipe.teacher).config
    assert found["evaluations"] == len(search.evaluations) == 4 + 2 * 3
    assert found["perplexity"] == min(e.fitness for e in search.evaluations)
    assert found["subnet"] == json.loads((folder / "subnet.json").read_text()) == search.best.to_dict()
    assert found["tokens_per_evaluation"] == 128 and found["tokens"] == 1280
    assert found["flops"] == sum(
        128 * flops_per_token(config, e.subnet, sequence_length=32) for e in search.evaluations
    )


@pytest.mark.parametrize("fitness", slow_but(FITNESSES, "perplexity", "healed-perplexity", "staged", "importance"))
def test_search_by_any_fitness_finds_its_best_and_says_its_perplexity(recipe, tmp_path, fitness):
    search = {"algorithm": "random", "evaluations": 3, "fitness": fitness, "batch_size": 4}
    if fitness == "staged":
        search = {**FEW_IN_STAGES, "fitness": fitness, "batch_size": 4}
    if fitness in ("probe", "staged"):
        search["probe"] = {"steps": 2, "batch_size": 2}
    data = {**recipe.to_dict()["data"], "calibration_tokens": 512}
    values = {**recipe.to_dict(), "output_dir": str(tmp_path), "search": search, "data": data}
    stages = Run(Recipe.from_dict(values), progress=False)
    found, result = stages.search_facts(), SearchResult.load(tmp_path)
    words = {"probe": {"steps": 2}, "staged": {"steps": 2}, "importance": {"criterion": "activation"}}.get(fitness, {})
    assert found["fitness"] == {"name": fitness, "value": min(e.fitness for e in result.answers), **words}
    assert result.settings["fitness"]["name"] == fitness
    perplexity = Perplexity(stages.supernet, stages.blocks["search"])(result.best)
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-6)
    assert found["flops"] >= result.flops and found["tokens"] >= result.tokens
    assert {"search.png", "pareto.png", "architecture.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_seconds_are_those_of_the_whole_training(recipe, tmp_path, monkeypatch):
    trainers, train = [], DistillationTrainer.train_from
    monkeypatch.setattr(DistillationTrainer, "train_from", lambda self, *a: (trainers.append(self), train(self, *a)))
    values = recipe.to_dict()
    values |= {"output_dir": str(tmp_path), "training": {**values["training"], "logging_steps": 1}}
    facts = Run(Recipe.from_dict(values), progress=False).train_student()
    times = [row["train_runtime"] for row in trainers[0].state.log_history if "train_runtime" in row]
    assert len(times) > 2 and facts["seconds"] == max(times)


def test_what_matching_the_baseline_took_follows_from_the_curves(recipe, results, student):
    teacher = AutoModelForCausalLM.from_pretrained(recipe.teacher)
    own, teachers = (
        training_flops_per_token(student.config, sequence_length=32),
        flops_per_token(teacher.config, sequence_length=32),
    )
    target = results["baseline"]["curve"][-1]["perplexity"]
    reached = {
        name: next((p["tokens"] for p in results[name]["curve"] if p["perplexity"] <= target), None)
        for name in ("student", "baseline")
    }
    expected = {
        "perplexity": target,
        "baseline_tokens": reached["baseline"],
        "baseline_flops": reached["baseline"] * own,
    }
    if reached["student"] is not None:
        parts = {
            "search": results["search"]["flops"],
            "training": reached["student"] * own,
            "teacher": reached["student"] * teachers,
        }
        expected |= {"student_tokens": reached["student"], "student_flops": parts}
        expected["flops_ratio"] = reached["baseline"] * own / sum(parts.values())
        if reached["student"]:
            expected["tokens_ratio"] = reached["baseline"] / reached["student"]
    assert results["to_match"] == pytest.approx(expected)


def test_card_has_facts_alone(folder, recipe, results):
    text = (folder / "README.md").read_text()
    _, front, page = ("\n" + text).split("\n---\n", 2)
    metadata = yaml.safe_load(front)
    metric = metadata["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == round(results["student"]["curve"][-1]["perplexity"], 4)
    assert metadata["model-index"][0]["name"] == "student-of-mine" and metadata["library_name"] == "transformers"
    assert not [word for word in ("None", "{{", "{%", str(folder.parent), recipe.teacher) if word in text]
    assert "base_model" not in metadata and "knowledge distillation from" in page


@pytest.mark.parametrize("name", ["search.png", "training.png"])
def test_pictures_are_png(folder, name):
    content = (folder / name).read_bytes()
    assert content.startswith(PNG) and b"IEND" in content[-16:]


def test_recipe_on_disk_is_the_same(folder, recipe):
    assert Recipe.load(folder / "recipe.yaml") == recipe


def test_a_second_run_does_nothing_again(recipe, results, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("this was done already")

    monkeypatch.setattr(hf_whittle.run.stages, "search_subnets", forbidden)
    monkeypatch.setattr(hf_whittle.run.stages, "DistillationTrainer", forbidden)
    monkeypatch.setattr(hf_whittle.run.stages, "extract_subnet", forbidden)
    assert run(recipe, progress=False) == results


def test_another_recipe_in_the_folder_is_an_error(teacher_folder, texts, recipe, results):
    other = make_recipe(teacher_folder, texts, recipe.output_dir, training={"max_steps": 7}, baseline=True)
    with pytest.raises(OutputError, match="holds the run of a recipe with another training; choose another"):
        run(other, progress=False)


class After:
    """Calls a method as it is, and from the `number`-th call on does something else first."""

    def __init__(self, monkeypatch, owner, name, number, act):
        original, calls = getattr(owner, name), []

        def counted(*args, **kwargs):
            calls.append(name)
            if len(calls) >= number:
                act(len(calls) == number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


def interrupt(first):
    raise KeyboardInterrupt


def press_ctrl_c(first):
    if first:
        os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c_twice(first):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def fill_disk(first):
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_fails(first):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


BREAKS = {
    "interrupted in the search": (Perplexity, "__call__", 6, interrupt),
    "interrupted before extraction": (hf_whittle.run.stages, "extract_subnet", 1, interrupt),
    "interrupted before training": (hf_whittle.run.stages, "DistillationTrainer", 1, interrupt),
    "Ctrl-C in training": (DistillationTrainer, "training_step", 3, press_ctrl_c),
    "Ctrl-C in training of the baseline": (DistillationTrainer, "training_step", 9, press_ctrl_c),
    "two Ctrl-C in training": (DistillationTrainer, "training_step", 3, press_ctrl_c_twice),
    "interrupted in a checkpoint": (DistillationTrainer, "_save_optimizer_and_scheduler", 3, interrupt),
    "interrupted in the last save": (Run, "_save", 2, interrupt),
    "interrupted before the card": (hf_whittle.run.stages, "describe", 1, interrupt),
    "disk full in the search": (hf_whittle.search.archive, "evaluation_line", 6, fill_disk),
    "disk full between generations": (hf_whittle.files.atomic.os, "fsync", 5, fill_disk),
    "disk full in a checkpoint": (DistillationTrainer, "_save_optimizer_and_scheduler", 3, fill_disk),
    "disk full in the last save": (Run, "_save", 2, fill_disk),
    "torch cannot write a checkpoint": (
        DistillationTrainer,
        "_save_optimizer_and_scheduler",
        3,
        torch_fails,
    ),
    "disk full in a picture": (hf_whittle.plots, "_save", 2, fill_disk),
    "disk full in the card": (hf_whittle.run.stages, "describe", 1, fill_disk),
}


@pytest.fixture
def default_ctrl_c():
    """Ctrl-C as Python has it, before the test and after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def break_off(recipe, broken, monkeypatch):
    *place, act = BREAKS[broken]
    error = OutputError if act in (fill_disk, torch_fails) else KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(hf_whittle.run.stages, "preflight", lambda stages: None)  # calls are counted from the search on
        After(patch, *place, act)
        run(recipe, progress=False)


def weights_that_differ(first, second):
    expected, got = (load_file(Run(recipe).folder / "model.safetensors") for recipe in (first, second))
    assert expected.keys() == got.keys()
    return [name for name in expected if not expected[name].equal(got[name])]


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.parametrize(
    "broken",
    slow_but(
        [name for name in BREAKS if "baseline" not in name],
        "interrupted in the search",
        "two Ctrl-C in training",
        "disk full in the last save",
    ),
)
def test_a_run_that_broke_off_goes_on_to_the_same_student(recipe, same_recipe, results, broken, monkeypatch):
    break_off(same_recipe, broken, monkeypatch)
    again = run(same_recipe, progress=False)
    assert weights_that_differ(recipe, same_recipe) == []
    assert again["student"]["curve"] == results["student"]["curve"]
    assert again["search"] | {"seconds": 0} == results["search"] | {"seconds": 0}


# A search in stages, whose student is healed


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
    """A run of it: the recipe and what it gave."""
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
    assert Run(recipe, progress=False)._probe_config.learning_rate == rate


def test_a_baseline_that_is_trained_is_not_passed_off_as_another(healed):
    recipe, _ = healed
    with pytest.raises(OutputError, match="holds the run of a recipe with another baseline"):
        Run(dataclasses.replace(recipe, baseline={"learning_rate": 1e-4}), progress=False)
    Run(dataclasses.replace(recipe, baseline=False), progress=False)
    Run(recipe, progress=False)


def test_student_starts_healed_and_healing_is_judged_on_text_it_was_not_fitted_to(healed):
    recipe, results = healed
    stages, facts = Run(recipe, progress=False), results["healing"]
    report = json.loads((stages.folder / "stages" / "initial" / "healing.json").read_text())
    assert facts == {name: report[name] for name in facts if name != "flops"} | {"flops": facts["flops"]}
    assert json.loads((stages.folder / "healing.json").read_text()) == report
    assert facts["tokens"] + facts["held_out_tokens"] == 1024
    student = AutoModelForCausalLM.from_pretrained(stages.folder / "stages" / "initial")
    sliced = extract_subnet(stages.supernet, SubnetConfig.from_dict(results["search"]["subnet"]))
    _, held_out = split_blocks(as_input_ids(stages._healing_blocks, student.config.vocab_size), 0.2)
    assert facts["is_healed"] and facts["perplexity_after"] < facts["perplexity_before"]
    assert math.exp(cross_entropy(student, held_out)) == pytest.approx(facts["perplexity_after"], rel=1e-4)
    assert math.exp(cross_entropy(sliced, held_out)) == pytest.approx(facts["perplexity_before"], rel=1e-4)
    test = as_input_ids(stages.blocks["test"], student.config.vocab_size)
    start = results["student"]["curve"][0]["perplexity"]
    assert math.exp(cross_entropy(student, test)) == pytest.approx(start, rel=1e-3)


def test_perplexity_of_a_healed_run_is_that_of_the_sliced_subnet(healed):
    recipe, results = healed
    stages = Run(recipe, progress=False)
    perplexity = Perplexity(stages.supernet, stages.blocks["search"])(SearchResult.load(stages.folder).best)
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


def test_a_student_that_healing_does_not_help_starts_as_sliced(healed_recipe, healed, tmp_path, monkeypatch):
    heal = student_module.heal_weights

    def worse(teacher, subnet, sliced, *args):
        _, report = heal(teacher, subnet, sliced, *args)
        return sliced, dataclasses.replace(report, is_healed=False, perplexity_after=9e9)

    monkeypatch.setattr(student_module, "heal_weights", worse)
    stages = Run(healed_recipe(tmp_path / "run"), progress=False)
    shutil.copytree(Path(healed[0].output_dir), stages.folder, dirs_exist_ok=True)
    shutil.rmtree(stages.folder / "stages" / "initial")
    facts, student = stages.healing_facts(), stages.initial_student()
    assert not facts["is_healed"] and facts["perplexity_after"] == 9e9
    sliced = extract_subnet(stages.supernet, SearchResult.load(stages.folder).best).state_dict()
    assert all(weight.equal(sliced[name]) for name, weight in student.state_dict().items())


def test_healing_is_part_of_what_the_student_cost(healed):
    _, results = healed
    if "student_flops" in results["to_match"]:
        assert results["to_match"]["student_flops"]["healing"] == results["healing"]["flops"]


def test_healing_and_probes_read_training_text_alone(healed):
    stages = Run(healed[0], progress=False)
    rows = {name: {tuple(row) for row in blocks["input_ids"]} for name, blocks in stages.blocks.items()}
    read = {tuple(row) for row in stages._healing_blocks["input_ids"]}
    read |= {tuple(row.tolist()) for row in stages._make_probe().input_ids}
    assert len(read) > 16 and read <= rows["train"] and not read & (rows["search"] | rows["test"])


def test_a_probe_takes_the_loss_of_the_training_unless_the_recipe_says_otherwise(healed_recipe, tmp_path):
    training = {"alpha": 0.5, "beta": 0.3, "temperature": 1.5}
    search = {"algorithm": "random", "fitness": "probe", "probe": {"beta": 0.25, "steps": 7}}
    config = Run(healed_recipe(tmp_path, training=training, search=search))._probe_config
    assert (config.alpha, config.beta, config.temperature, config.steps) == (0.5, 0.25, 1.5, 7)


def test_a_probe_learns_from_the_teacher_of_the_recipe(healed_recipe, teacher_folder, tmp_path):
    changes = {"supernet": str(teacher_folder), "teacher": str(tmp_path / "teacher")}
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    teacher.get_output_embeddings().weight.data.mul_(0.5)
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    stages = Run(healed_recipe(tmp_path / "run", **changes), progress=False)
    _, head = stages._make_probe()._targets
    torch.testing.assert_close(head.weight, teacher.get_output_embeddings().weight, rtol=0, atol=0)


def test_a_probe_whose_teacher_cannot_teach_is_found_before_the_search(healed_recipe, teacher_folder, tmp_path):
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size += 20
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    search = {"algorithm": "random", "fitness": "probe", "probe": {"beta": 0.5}}
    changes = {"supernet": str(teacher_folder), "teacher": str(tmp_path / "teacher"), "training": {"beta": 0.0}}
    with pytest.raises(VocabularyError, match="has 320 entries, that of the super-network 300; use a teacher with"):
        run(healed_recipe(tmp_path / "run", **changes, search=search), progress=False)


def test_too_little_text_for_a_probe_is_an_error(healed_recipe, tmp_path):
    search = {"algorithm": "random", "evaluations": 1, "fitness": "probe", "probe": {"steps": 1000}}
    with pytest.raises(DataError, match="1000 steps of 16 blocks need 16000 blocks of text to train on, got"):
        run(healed_recipe(tmp_path / "run", search=search), progress=False)


@pytest.mark.parametrize("heal", [False, {"head": False}])
def test_another_healing_in_the_folder_is_an_error(healed_recipe, healed, heal):
    with pytest.raises(OutputError, match="holds the run of a recipe with another heal; choose another"):
        run(healed_recipe(healed[0].output_dir, heal=heal), progress=False)


def test_the_same_healing_spelled_out_goes_on(healed_recipe, healed):
    Run(healed_recipe(healed[0].output_dir, heal=healed[0].to_dict()["heal"]))


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


@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"basis": "channels"}, {"inputs": False}, {"outputs": False, "head": False}], ids=str
)
def test_cost_of_healing_is_what_it_computes_and_little_more(is_parallel, settings):
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    config = GPTNeoXConfig(**sizes, vocab_size=99, use_parallel_residual=is_parallel)
    config._attn_implementation = "eager"
    subnet = SubnetConfig(40, [0, 1, 3], [3, 2, 4], [128, 100, 200])
    input_ids = torch.randint(0, 99, (20, 32), generator=torch.Generator().manual_seed(0))
    model = GPTNeoXForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter:
        student = extract_subnet(
            model, subnet, heal=HealingConfig(**settings), calibration_dataset=input_ids, progress=False
        )
    counted = counter.get_total_flops()
    assert counted <= healing_flops(config, subnet, student.healing.to_dict(), 32) <= 1.25 * counted


# A search by importance in a bin of FLOPs

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


@pytest.mark.parametrize("importance, passes", [("magnitude", 1), ("taylor", 1 + 3)])  # cosine; forward and backward
def test_calibration_costs_as_many_passes_as_it_makes(teacher_folder, texts, tmp_path, importance, passes):
    changes = SCORED | {"space": {"granularity": "fine", "importance": importance}, "search": {"generations": 0}}
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", **changes)
    config, facts = AutoConfig.from_pretrained(teacher_folder), Run(recipe, progress=False).search_facts()
    evaluated = [e.subnet for e in SearchResult.load(recipe.output_dir).evaluations]
    whole, *subnets = (flops_per_token(config, subnet, sequence_length=32) for subnet in (None, *evaluated))
    assert facts["tokens"] == 128 * (1 + 4)
    assert facts["flops"] == 128 * (passes * whole + sum(subnets))


def test_calibration_reads_no_text_that_results_are_reported_on(scored_recipe, scored_results, monkeypatch):
    read = []
    score = hf_whittle.run.stages.score_importance
    monkeypatch.setattr(
        hf_whittle.run.stages, "score_importance", lambda *args, **kw: read.append(args[1]) or score(*args, **kw)
    )
    again = Run(scored_recipe, progress=False)
    again.search()
    rows = {name: {tuple(row) for row in blocks["input_ids"]} for name, blocks in again.blocks.items()}
    calibration = {tuple(row) for row in read[0]["input_ids"]}
    assert len(calibration) == 4 and calibration <= rows["train"] and not calibration & (rows["search"] | rows["test"])


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


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.slow
def test_a_stock_baseline_goes_on_to_the_same_one(teacher_folder, texts, tmp_path, monkeypatch):
    changes = {"space": {"layer_wise": False, "stock_only": True}, "baseline": True}
    whole, broken = (make_recipe(teacher_folder, texts, tmp_path / name, **changes) for name in ("whole", "broken"))
    expected = run(whole, progress=False)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == "gpt_neox"
    break_off(broken, "Ctrl-C in training of the baseline", monkeypatch)
    got = run(broken, progress=False)
    assert weights_that_differ(whole, broken) == []
    assert got["baseline"]["curve"][-1] == expected["baseline"]["curve"][-1]


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.parametrize(
    "broken",
    slow_but(["Ctrl-C in training", "two Ctrl-C in training", "disk full in a checkpoint"], "Ctrl-C in training"),
)
def test_a_training_that_broke_off_gives_ctrl_c_back(same_recipe, broken, monkeypatch):
    break_off(same_recipe, broken, monkeypatch)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"bin": {"low": 1e9, "high": 2e9}}, BinError, "1e\\+09|1000000000|1,000,000,000"),
        ({"bin": {"low": 5, "high": 2}}, RecipeError, "0 <= low <= high, got low=5, high=2"),
        ({"data": {"block_size": 128}}, DataError, "block_size 128 exceeds the 64 positions of"),
        ({"data": {"search_fraction": 1e-9}}, DataError, "the split 'search' of 40 documents is empty"),
        ({"data": {"text_column": "content"}}, DataError, "no column 'content'"),
        ({"data": {"files": ["nowhere/*.txt"]}}, DataError, "no file matches"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(teacher_folder, texts, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(make_recipe(teacher_folder, texts, tmp_path / "run", **changes), progress=False)


def test_another_architecture_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ArchitectureError, match=r"is 'gpt2'; hf_whittle knows .*use a GPT-NeoX or Pythia"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_supernet_with_another_tokenizer_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens(["<more>"])
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "supernet")
    tokenizer.save_pretrained(tmp_path / "supernet")
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", supernet=str(tmp_path / "supernet"))
    with pytest.raises(VocabularyError, match="tokenizers differ in 1 tokens, first '<more>'"):
        run(recipe, progress=False)


def test_a_tokenizer_larger_than_the_model_is_an_error(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(VocabularyError, match=f"has {size + 1} tokens, the model only {size} embeddings"):
        run(make_recipe(tmp_path / "teacher", texts, tmp_path / "run"), progress=False)


def test_a_corrected_recipe_runs_in_the_folder_of_one_that_failed_at_once(teacher_folder, texts, tmp_path):
    with pytest.raises(BinError):
        run(make_recipe(teacher_folder, texts, tmp_path / "run", bin={"low": 1e9, "high": 2e9}), progress=False)
    Run(make_recipe(teacher_folder, texts, tmp_path / "run"))


def test_published_student_uses_its_cache(folder):
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True


def test_environment_is_that_of_the_training_when_run_again(recipe, results, monkeypatch):
    monkeypatch.setattr(
        hf_whittle.record.training, "environment", lambda device: Environment(hardware="another machine")
    )
    assert run(recipe, progress=False)["environment"] == results["environment"]


@pytest.mark.slow
def test_tokens_are_those_seen_where_the_last_batch_of_an_epoch_is_short(teacher_folder, texts, tmp_path):
    training = {"max_steps": 40, "per_device_train_batch_size": 100, "beta": 0.0, "eval_steps": 10}
    recipe = make_recipe(teacher_folder, texts, tmp_path / "out", training=training)
    blocks = len(Run(recipe, progress=False).blocks["train"])
    steps_an_epoch = math.ceil(blocks / 100)
    assert 100 * steps_an_epoch > blocks  # the last batch is short
    seen = sum(min(100, blocks - 100 * (step % steps_an_epoch)) for step in range(40)) * 32
    assert run(recipe, progress=False)["student"]["tokens"] == seen


@pytest.mark.slow
def test_a_checkpoint_cut_off_while_written_is_passed_over(same_recipe, results, monkeypatch):
    break_off(same_recipe, "two Ctrl-C in training", monkeypatch)
    checkpoints = sorted((Path(same_recipe.output_dir) / "stages" / "student").glob("checkpoint-*"))
    state = checkpoints[-1] / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert run(same_recipe, progress=False)["student"]["curve"] == results["student"]["curve"]


def test_a_teacher_without_a_tokenizer_is_an_error(teacher_folder, texts, tmp_path):
    AutoModelForCausalLM.from_pretrained(teacher_folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        run(make_recipe(tmp_path / "bare", texts, tmp_path / "out"), progress=False)


def test_a_separate_teacher_that_cannot_teach_is_found_before_the_search(teacher_folder, texts, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size += 20
    other = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=64)
    teachers = {VocabularyError: AutoModelForCausalLM.from_config(config), ArchitectureError: GPT2LMHeadModel(other)}
    for error, teacher in teachers.items():
        teacher.save_pretrained(tmp_path / error.__name__)
        tokenizer.save_pretrained(tmp_path / error.__name__)
        recipe = make_recipe(
            tmp_path / error.__name__, texts, tmp_path / f"out-{error.__name__}", supernet=str(teacher_folder)
        )
        with pytest.raises(error):
            run(recipe, progress=False)
        assert not (tmp_path / f"out-{error.__name__}" / "candidates.jsonl").is_file()


def test_an_output_folder_that_is_a_file_is_an_error(teacher_folder, texts, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run(make_recipe(teacher_folder, texts, tmp_path / "out"), progress=False)


def test_student_learns_from_what_the_teacher_said_before(recipe, results, texts, teacher_folder, tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert (
        main(["store-logits", str(path), "--output-dir", str(tmp_path / "store"), "--kind", "top-k", "--k", "300"]) == 0
    )
    stored = make_recipe(teacher_folder, texts, tmp_path / "out", teacher_store=str(tmp_path / "store"), baseline=False)
    curve = run(stored, progress=False)["student"]["curve"]
    expected = [point["perplexity"] for point in results["student"]["curve"]]
    assert [point["perplexity"] for point in curve] == pytest.approx(expected, rel=1e-2)


def test_a_folder_that_another_process_writes_is_an_error_and_nothing_of_it_changes(same_recipe, run_python, tmp_path):
    script = """
        import sys
        from hf_whittle.cli import main
        sys.exit(0 if main(["run", sys.argv[1]]) == 1 else 9)
    """
    same_recipe.save(tmp_path / "recipe.yaml")
    with folder_lock(same_recipe.output_dir):
        before = sorted(Path(same_recipe.output_dir).iterdir())
        run_python(script, tmp_path / "recipe.yaml")
        assert sorted(Path(same_recipe.output_dir).iterdir()) == before
        Run(same_recipe, progress=False).search()  # nested in the process that holds it


def test_training_may_be_mended_after_the_search_and_the_search_is_kept(
    teacher_folder, texts, same_recipe, results, monkeypatch
):
    break_off(same_recipe, "interrupted before training", monkeypatch)
    mended = make_recipe(teacher_folder, texts, same_recipe.output_dir, training={"max_steps": 2})
    monkeypatch.setattr(Perplexity, "__call__", lambda *_: pytest.fail("the search was done already"))
    again = run(mended, progress=False)
    assert again["student"]["steps"] == 2 and again["search"]["subnet"] == results["search"]["subnet"]


def test_no_room_for_an_optimizer_is_one_error_and_the_same_command_goes_on(recipe, same_recipe, results, monkeypatch):
    """A file of more than 100 kB is refused by the system itself while a checkpoint is written."""
    monkeypatch.setattr(hf_whittle.run.stages, "preflight", lambda stages: None)  # which would find out
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    start = DistillationTrainer._save_optimizer_and_scheduler

    def with_little_room(trainer, folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            start(trainer, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", with_little_room)
        with pytest.raises(OutputError, match=r"could not write .*student: .*run the same command again"):
            run(same_recipe, progress=False)
    assert run(same_recipe, progress=False)["student"]["curve"] == results["student"]["curve"]
    assert weights_that_differ(recipe, same_recipe) == []
