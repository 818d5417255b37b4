"""The main job end to end: results are those measured, and a finished run does nothing again."""

import json
import math
from pathlib import Path

import pytest
import yaml
from fixtures_run import FEW_IN_STAGES, make_recipe
from fixtures_slow import slow_but
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_whittle.record.training
import hf_whittle.run.main
import hf_whittle.run.stages
import hf_whittle.run.trainers
from hf_whittle.cli import main
from hf_whittle.cost import flops_per_token, training_flops_per_token
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import OutputError
from hf_whittle.evaluation import as_input_ids, cross_entropy
from hf_whittle.files.locks import folder_lock
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.recipe import Recipe
from hf_whittle.recipe.sections import FITNESSES
from hf_whittle.record.evaluation import EvaluationFacts
from hf_whittle.record.facts import Environment
from hf_whittle.record.results import Results, record_evaluation
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.ledger import Ledger
from hf_whittle.run.stages import publish, search
from hf_whittle.search.result import SearchResult

PNG = b"\x89PNG\r\n\x1a\n"


def test_results_on_disk_are_those_returned(folder, results):
    assert json.loads((folder / "results.json").read_text()) == results


def test_student_loads_and_has_the_reported_perplexity(folder, recipe, results, student):
    blocks = as_input_ids(Inputs(recipe).blocks["test"], student.config.vocab_size)
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
    blocks = as_input_ids(Inputs(recipe).blocks["test"], teacher.config.vocab_size)
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


@pytest.mark.slow
@pytest.mark.parametrize("fitness", slow_but(FITNESSES, "perplexity", "healed-perplexity", "staged", "importance"))
def test_search_by_any_fitness_finds_its_best_and_says_its_perplexity(recipe, tmp_path, fitness):
    section = {"algorithm": "random", "evaluations": 3, "fitness": fitness, "batch_size": 4}
    if fitness == "staged":
        section = {**FEW_IN_STAGES, "fitness": fitness, "batch_size": 4}
    if fitness in ("probe", "staged"):
        section["probe"] = {"steps": 2, "batch_size": 2}
    data = {**recipe.to_dict()["data"], "calibration_tokens": 512}
    values = {**recipe.to_dict(), "output_dir": str(tmp_path), "search": section, "data": data}
    inputs = Inputs(Recipe.from_dict(values))
    found, result = search(inputs, Ledger(tmp_path), progress=False), SearchResult.load(tmp_path)
    words = {"probe": {"steps": 2}, "staged": {"steps": 2}, "importance": {"criterion": "activation"}}.get(fitness, {})
    assert found.fitness.to_dict() == {"name": fitness, "value": min(e.fitness for e in result.answers), **words}
    assert result.settings["fitness"]["name"] == fitness
    perplexity = Perplexity(inputs.supernet, inputs.blocks["search"])(result.best)
    assert found.perplexity == pytest.approx(perplexity, rel=1e-6)
    assert found.flops >= result.flops and found.tokens >= result.tokens
    assert {"search.png", "pareto.png", "architecture.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_seconds_are_those_of_the_whole_training(recipe, tmp_path, monkeypatch):
    trainers, train = [], DistillationTrainer.train_from
    monkeypatch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)  # which trains, too
    monkeypatch.setattr(DistillationTrainer, "train_from", lambda self, *a: (trainers.append(self), train(self, *a)))
    values = recipe.to_dict()
    values |= {"output_dir": str(tmp_path), "training": {**values["training"], "logging_steps": 1}, "baseline": False}
    facts = run(Recipe.from_dict(values), progress=False)["student"]
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
    monkeypatch.setattr(hf_whittle.run.trainers, "DistillationTrainer", forbidden)
    monkeypatch.setattr(hf_whittle.run.stages, "extract_subnet", forbidden)
    assert run(recipe, progress=False) == results
    folder, task = Path(recipe.output_dir), {"task": "piqa", "title": "piqa", "metric": "acc", "value": 0.5}
    record_evaluation(folder, EvaluationFacts.from_dict({"tasks": [task]}))
    assert run(recipe, progress=False) == {**results, "evaluation": {"tasks": [task]}}
    Results.from_dict(results).save(folder)  # as other tests find it


def test_evaluations_stay_until_there_are_other_weights(tmp_path):
    task = {"task": "piqa", "title": "piqa", "metric": "acc", "value": 0.5}
    (tmp_path / "stages" / "final").mkdir(parents=True)
    record_evaluation(tmp_path, EvaluationFacts.from_dict({"tasks": [task]}))
    publish(Ledger(tmp_path))
    assert Results.load(tmp_path).evaluation.tasks[0].value == 0.5
    (tmp_path / "stages" / "final" / "model.safetensors").write_bytes(b"")
    publish(Ledger(tmp_path))
    assert Results.load(tmp_path).evaluation is None and (tmp_path / "model.safetensors").is_file()


def test_another_recipe_in_the_folder_is_an_error(teacher_folder, texts, recipe, results):
    other = make_recipe(teacher_folder, texts, recipe.output_dir, training={"max_steps": 7}, baseline=True)
    with pytest.raises(OutputError, match="holds the run of a recipe with another training; choose another"):
        run(other, progress=False)


def test_published_student_uses_its_cache(folder):
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True


@pytest.mark.slow
def test_environment_is_that_of_the_training_when_run_again(recipe, results, monkeypatch):
    monkeypatch.setattr(
        hf_whittle.record.training, "environment", lambda device: Environment(hardware="another machine")
    )
    assert run(recipe, progress=False)["environment"] == results["environment"]


@pytest.mark.slow
def test_tokens_are_those_seen_where_the_last_batch_of_an_epoch_is_short(teacher_folder, texts, tmp_path):
    training = {"max_steps": 40, "per_device_train_batch_size": 100, "beta": 0.0, "eval_steps": 10}
    recipe = make_recipe(teacher_folder, texts, tmp_path / "out", training=training)
    blocks = len(Inputs(recipe).blocks["train"])
    steps_an_epoch = math.ceil(blocks / 100)
    assert 100 * steps_an_epoch > blocks  # the last batch is short
    seen = sum(min(100, blocks - 100 * (step % steps_an_epoch)) for step in range(40)) * 32
    assert run(recipe, progress=False)["student"]["tokens"] == seen


@pytest.mark.slow
def test_student_learns_from_stored_logits_as_from_the_teacher(recipe, results, texts, teacher_folder, tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert (
        main(["store-logits", str(path), "--output-dir", str(tmp_path / "store"), "--kind", "top-k", "--k", "300"]) == 0
    )
    stored = make_recipe(teacher_folder, texts, tmp_path / "out", teacher_store=str(tmp_path / "store"), baseline=False)
    curve = run(stored, progress=False)["student"]["curve"]
    expected = [point["perplexity"] for point in results["student"]["curve"]]
    assert [point["perplexity"] for point in curve] == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_a_folder_that_another_process_writes_is_an_error_and_nothing_of_it_changes(same_recipe, run_warm, tmp_path):
    script = """
        import sys
        from hf_whittle.cli import main
        sys.exit(0 if main(["run", sys.argv[1]]) == 1 else 9)
    """
    same_recipe.save(tmp_path / "recipe.yaml")
    with folder_lock(same_recipe.output_dir):
        before = sorted(Path(same_recipe.output_dir).iterdir())
        run_warm(script, tmp_path / "recipe.yaml")
        assert sorted(Path(same_recipe.output_dir).iterdir()) == before
        ledger = Ledger(Path(same_recipe.output_dir))
        search(Inputs(same_recipe), ledger, progress=False)  # nested in the process that holds the lock
