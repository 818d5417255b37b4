"""Failures that would come after the search are found before it, for a few passes over a few tokens."""

import dataclasses
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from fixtures_run import make_recipe
from safetensors.torch import load_file
from transformers.integrations import WandbCallback
from transformers.utils import logging

import hf_whittle
import hf_whittle.cli
import hf_whittle.run.main
import hf_whittle.run.preflight
from hf_whittle import HealingConfig
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import CheckpointError, OutputError, RecipeError, StoreError, SubnetError
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.preflight import preflight

DEMO_TEACHER = Path(hf_whittle.__file__).parent / "demo" / "teacher"


def fails_early(recipe, error, message):
    """Run a recipe that is to fail before anything is evaluated."""
    with pytest.raises(error, match=message):
        run(recipe, progress=False)
    folder = Path(recipe.output_dir)
    assert not (folder / "candidates.jsonl").exists() and list((folder / "stages").iterdir()) == []


LATE = {
    "an argument of the schedule": ({"lr_scheduler_kwargs": {"min_lr": 1e-5}}, "unexpected keyword argument 'min_lr'"),
    "a schedule that lacks one": ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
    "a logger that is not installed": ({"report_to": "wandb"}, "requires wandb to be installed"),
    "an optimizer's library": ({"optim": "galore_adamw"}, "install `galore_torch`"),
    "an optimizer's argument": ({"optim_args": "betas"}, "unpack"),
    "a metric that nothing computes": ({"metric_for_best_model": "eval_accuracy"}, "'eval_accuracy', which is not"),
}


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("late", LATE)
def test_what_training_would_stumble_over_is_found_before_the_search(teacher_folder, texts, tmp_path, late):
    training, message = LATE[late]
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", training=training)
    fails_early(recipe, RecipeError, f"^training: a trial in small, before anything expensive, failed: .*{message}")


def test_a_dimension_that_the_architecture_lacks_is_an_error_before_the_text_is_read(teacher_folder, texts, tmp_path):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", space={"num_key_value_heads": [1, 2, 1]})
    with pytest.raises(SubnetError, match="num_key_value_heads: a gpt_neox has no such dimension, only hidden_size"):
        run(recipe, progress=False)
    assert not (tmp_path / "run" / "inputs.json").exists()


@pytest.mark.slow
def test_the_baseline_is_tried_with_its_own_settings(teacher_folder, texts, tmp_path):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", baseline=True)
    fails_early(dataclasses.replace(recipe, baseline={"report_to": "wandb"}), RecipeError, "^baseline: .*wandb")


@pytest.mark.slow
def test_a_mended_recipe_runs_in_the_same_folder(teacher_folder, texts, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RecipeError, match="wandb"):
        run(make_recipe(teacher_folder, texts, folder, training={"report_to": "wandb"}), progress=False)
    assert run(make_recipe(teacher_folder, texts, folder), progress=False)["student"]["steps"] == 6


@pytest.mark.slow
def test_a_healing_that_training_cannot_go_with_is_found_before_the_search(texts, tmp_path):
    sections = {"bin": {"low": 800e3, "high": 880e3}, "training": {"hidden_weight": 1.0}, "heal": True}
    recipe = make_recipe(DEMO_TEACHER, texts, tmp_path / "run", **sections)
    fails_early(recipe, SubnetError, r"heal it with HealingConfig\(basis='channels'\)")


@pytest.mark.slow
@pytest.mark.parametrize("heal", [False, HealingConfig(basis="channels")])
def test_a_student_of_channels_learns_hidden_states(teacher_folder, texts, tmp_path, heal):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", training={"hidden_weight": 1.0})
    assert run(dataclasses.replace(recipe, heal=heal), progress=False)["student"]["steps"] == 6


@pytest.mark.slow
def test_a_tied_basis_that_training_cannot_go_with_is_found_before_the_search(
    teacher_folder, make_stock, texts, tmp_path
):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    stock = make_stock(model_type="llama", tie_word_embeddings=True, vocab_size=300, bos_token_id=0, eos_token_id=0)
    stock.model.norm.weight.data.fill_(1.0)[:3] = 5.0  # too many for the smallest student, which keeps channels
    stock.save_pretrained(teacher)
    space, bin = {"hidden_size": [3, 15, 3]}, {"low": 15e3, "high": 25e3}
    sections = {"training": {"hidden_weight": 1.0}, "space": space, "bin": bin, "heal": True}
    recipe = make_recipe(teacher, texts, tmp_path / "run", **sections)
    fails_early(recipe, SubnetError, r"heal it with HealingConfig\(basis='channels'\)")


def test_a_generation_configuration_that_cannot_be_saved_is_found_before_the_search(teacher_folder, texts, tmp_path):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (teacher / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    recipe = make_recipe(teacher, texts, tmp_path / "run")
    fails_early(recipe, CheckpointError, "generation configuration contradicts itself, .*temperature.*Correct")


@pytest.mark.slow
def test_a_store_of_another_temperature_is_found_before_the_search(teacher_folder, texts, tmp_path):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "other", training={"temperature": 2.0})
    recipe.save(tmp_path / "recipe.yaml")
    command = ["store-logits", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "store")]
    assert hf_whittle.cli.main(command) == 0
    stored = make_recipe(teacher_folder, texts, tmp_path / "run", teacher_store=str(tmp_path / "store"))
    fails_early(stored, StoreError, "holds the teacher's distribution at temperature 2.0")
    missing = make_recipe(teacher_folder, texts, tmp_path / "run", teacher_store=str(tmp_path / "nowhere"))
    fails_early(missing, StoreError, "there is no store at")


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_a_teacher_without_weights_is_found_before_the_search(teacher_folder, texts, tmp_path, beta):
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (teacher / "model.safetensors").unlink()
    recipe = make_recipe(teacher, texts, tmp_path / "run", supernet=str(teacher_folder), training={"beta": beta})
    fails_early(recipe, CheckpointError, "cannot load the checkpoint .*teacher")


def test_a_stages_folder_in_the_way_is_found_before_the_search(teacher_folder, texts, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stages").write_text("")
    with pytest.raises(OutputError, match=r"could not write .*in the way"):
        run(make_recipe(teacher_folder, texts, tmp_path / "run"), progress=False)


@pytest.mark.slow
def test_what_is_tried_leaves_no_trace(teacher_folder, texts, tmp_path, monkeypatch):
    """The student is the one of a run without it, to the bit."""
    sections = {"heal": True, "data": {"calibration_tokens": 256}, "training": {"max_steps": 2}}
    with_it = make_recipe(teacher_folder, texts, tmp_path / "with", **sections)
    without = make_recipe(teacher_folder, texts, tmp_path / "without", **sections)
    inputs, folder = Inputs(with_it), tmp_path / "with"
    before = {name: value.clone() for name, value in inputs.supernet.state_dict().items()}
    shown = logging.is_progress_bar_enabled()
    preflight(inputs, folder)
    assert list((folder / "stages").iterdir()) == []
    assert all(value.equal(before[name]) for name, value in inputs.supernet.state_dict().items())
    assert all(parameter.requires_grad for parameter in inputs.supernet.parameters())
    assert logging.is_progress_bar_enabled() is shown
    run(with_it, progress=False)
    monkeypatch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)
    run(without, progress=False)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("with", "without")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_it_costs_a_few_passes_over_a_few_tokens(teacher_folder, texts, tmp_path):
    data = {"block_size": 64}
    training = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 9, "max_steps": 1000}
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", data=data, training=training, baseline=True)
    inputs, read = Inputs(recipe), []
    hook = inputs.supernet.base_model.register_forward_pre_hook(
        lambda _, given, named: read.append((named.get("input_ids") if not given else given[0]).shape),
        with_kwargs=True,
    )
    preflight(inputs, tmp_path / "run")
    hook.remove()
    # Two steps of the student, each of two blocks at most, and a look at the output layer; the baseline has no teacher.
    assert 4 * 32 <= sum(shape.numel() for shape in read) <= 4 * 32 + 8


@pytest.mark.slow
def test_a_separate_teacher_does_not_stay_in_memory_for_the_search(teacher_folder, texts, tmp_path, monkeypatch):
    teacher, loaded, load = shutil.copytree(teacher_folder, tmp_path / "teacher"), [], Inputs.load_teacher

    def load_teacher(inputs):
        model = load(inputs)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Inputs, "load_teacher", load_teacher)
    inputs = Inputs(make_recipe(teacher, texts, tmp_path / "run", supernet=str(teacher_folder)))
    preflight(inputs, tmp_path / "run")
    assert [model() for model in loaded] == [None] and "supernet" in vars(inputs)


def test_what_has_begun_is_not_tried_again(teacher_folder, texts, tmp_path, monkeypatch):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run")
    inputs, folder = Inputs(recipe), tmp_path / "run"
    (folder / "stages" / "student" / "checkpoint-2").mkdir(parents=True)
    monkeypatch.setattr(DistillationTrainer, "__init__", lambda *args, **kwargs: pytest.fail("tried again"))
    preflight(inputs, folder)
    assert hf_whittle.run.preflight._to_begin(inputs, folder) == {}


def test_loggers_are_found_installed_and_then_left_alone():
    removed = []
    logger, other = object.__new__(WandbCallback), object()
    handler = SimpleNamespace(callbacks=[logger, other])
    trainer = SimpleNamespace(callback_handler=handler, remove_callback=removed.append)
    assert hf_whittle.run.preflight._without_loggers(trainer) is trainer
    assert removed == [logger]


def test_the_schedule_tried_is_that_of_all_steps(teacher_folder, texts, tmp_path):
    training = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 4}
    inputs = Inputs(make_recipe(teacher_folder, texts, tmp_path / "run", training=training))
    args = hf_whittle.run.preflight._small_steps(inputs, tmp_path, {})
    assert args.max_steps == 3 * -(-len(inputs.blocks["train"]) // 4)
    assert (args.per_device_train_batch_size, args.eval_steps) == (1, 2)
    assert args.save_steps == -(-args.max_steps // 10)  # a tenth, as a number of steps: a checkpoint has it so


def test_short_blocks_are_beginnings_spread_over_all():
    blocks = Dataset.from_dict({"input_ids": torch.arange(200).view(20, 10).tolist()})
    short = hf_whittle.run.preflight._short(blocks, 3)
    assert [row[0] // 10 for row in short["input_ids"]] == [0, 2, 5, 7, 10, 12, 15, 17]
    assert all(row == [row[0], row[0] + 1, row[0] + 2] for row in short["input_ids"])
    assert hf_whittle.run.preflight._short(blocks, None)["input_ids"][1] == list(range(20, 30))
