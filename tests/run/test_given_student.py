"""A run of a student that is given: it is trained as it is, by a teacher and text of a recipe."""

import json
from pathlib import Path

import pytest
import torch
from fixtures_run import make_recipe
from fixtures_slow import slow_but
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_whittle.run.main
from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.distillation.config import DistillationConfig
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.errors import ArchitectureError, CheckpointError, OutputError, RecipeError
from hf_whittle.files.tokenizer import save_tokenizer
from hf_whittle.plan import plan_recipe
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs

SUBNETS = {
    "stock": {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
    "whittle": {
        "num_hidden_layers": 3,
        "hidden_size": 24,
        "num_attention_heads": [1, 4, 2],
        "intermediate_size": [40, 8, 64],
    },
}


@pytest.fixture(scope="module")
def make_given(teacher_folder, texts, tmp_path_factory):
    """A function that makes the folder of a student, and a recipe that trains it."""

    def make(kind="whittle", **sections):
        folder = tmp_path_factory.mktemp("given")
        student = extract_subnet(teacher_folder, SubnetConfig(**SUBNETS[kind]), folder / "student")
        output = folder / "out"
        return make_recipe(teacher_folder, texts, output, **sections).with_student(str(student))

    return make


@pytest.fixture(scope="module")
def given(make_given):
    return make_given()


@pytest.fixture(scope="module")
def with_baseline(make_given):
    return make_given(baseline=True)


@pytest.fixture(scope="module")
def trained(given):
    return run(given, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_but(SUBNETS, "whittle"))
def test_it_is_the_student_that_a_trainer_makes(make_given, trained, given, kind, tmp_path):
    recipe = given if kind == "whittle" else make_given(kind)
    if kind != "whittle":
        run(recipe, progress=False)
    inputs = Inputs(recipe)
    student = AutoModelForCausalLM.from_pretrained(recipe.student)
    args = recipe.training_arguments(tmp_path, disable_tqdm=True)
    assert isinstance(args, DistillationConfig)
    teacher = AutoModelForCausalLM.from_pretrained(recipe.teacher)
    trainer = DistillationTrainer(
        student, teacher_model=teacher, args=args, train_dataset=inputs.blocks["train"],
        eval_dataset=inputs.blocks["test"], processing_class=inputs.tokenizer,
    )  # fmt: skip
    trainer.train()
    made = load_file(Path(recipe.output_dir) / "model.safetensors")
    student.save_pretrained(tmp_path / "saved")
    expected = load_file(tmp_path / "saved" / "model.safetensors")
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_folder_has_everything_that_one_of_a_run_has(given, trained):
    folder = Path(given.output_dir)
    assert json.loads((folder / "results.json").read_text()) == trained
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.num_parameters() == trained["student"]["parameters"]
    assert AutoTokenizer.from_pretrained(folder)("import os").input_ids
    assert SubnetConfig.from_pretrained(folder) == SubnetConfig.from_pretrained(given.student)
    assert "search" not in trained
    assert trained["began_with"] == {"name": "student"}
    card = (folder / "README.md").read_text()
    assert "This training began with `student`." in card and "extracted from" in card
    assert "set `student` to the path of yours" in card


def test_the_given_student_stays_as_it_is_and_a_finished_run_does_nothing_again(given, trained, monkeypatch):
    before = {path.name: path.read_bytes() for path in Path(given.student).iterdir()}
    monkeypatch.setattr(DistillationTrainer, "train_from", None)
    monkeypatch.setattr(hf_whittle.run.main, "preflight", lambda *_: None)
    assert run(given, progress=False) == trained
    assert {path.name: path.read_bytes() for path in Path(given.student).iterdir()} == before


def test_the_first_perplexity_is_that_of_the_given_student(given, trained):
    from hf_whittle.evaluation import as_input_ids, cross_entropy, perplexity

    student = AutoModelForCausalLM.from_pretrained(given.student)
    blocks = as_input_ids(Inputs(given).blocks["test"], student.config.vocab_size)
    assert trained["student"]["curve"][0]["perplexity"] == pytest.approx(
        perplexity(cross_entropy(student, blocks)), rel=1e-3
    )


@pytest.mark.slow
def test_it_is_planned_as_it_is_and_what_it_took_to_make_is_not_known(with_baseline):
    trained, plan = run(with_baseline, progress=False), plan_recipe(with_baseline, "a100-80gb")
    assert trained["baseline"]["parameters"] == trained["student"]["parameters"] and "to_match" not in trained
    assert [stage.name for stage in plan.stages] == ["teacher", "student", "baseline"]
    assert plan.student == trained["student"]["parameters"] and plan.is_student_known and plan.supernet is None
    for name in ("student", "baseline"):
        per_token = trained[name]["flops_per_token"]
        assert plan.stage(name).flops == trained[name]["tokens"] * (per_token["student"] + per_token["teacher"])
    assert plan.stage("student").memory.peak > 0 and not plan.problems


@pytest.mark.slow
def test_a_run_whose_student_was_exchanged_does_not_go_on(make_given):
    recipe = make_given()
    run(recipe, progress=False)
    student = AutoModelForCausalLM.from_pretrained(recipe.student)
    with torch.no_grad():
        next(student.parameters()).add_(1)
    student.save_pretrained(recipe.student)
    with pytest.raises(OutputError, match="inputs have other contents now: the student"):
        run(recipe, progress=False)


@pytest.mark.slow
def test_a_folder_of_a_search_is_not_one_of_a_given_student(given, same_recipe, folder):
    values = {**given.to_dict(), "output_dir": str(folder)}
    with pytest.raises(OutputError, match="the run of a recipe with another bin, student"):
        run(type(given).from_dict(values), progress=False)


def test_a_student_that_is_none_is_an_error_before_anything_else(given, tmp_path, texts, tmp_path_factory):
    def fails(error, match, student):
        values = {**given.to_dict(), "output_dir": str(tmp_path / "out"), "student": str(student)}
        with pytest.raises(error, match=match):
            run(type(given).from_dict(values), progress=False)
        assert not (tmp_path / "out" / "stages" / "initial").exists()

    fails(CheckpointError, "cannot load the checkpoint", tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    fails(ArchitectureError, "bert", tmp_path / "other")
    student = AutoModelForCausalLM.from_pretrained(given.student)
    student.save_pretrained(tmp_path / "bare")
    fails(CheckpointError, "has no tokenizer", tmp_path / "bare")
    save_tokenizer(AutoTokenizer.from_pretrained(given.teacher), tmp_path / "bare")


def test_a_setting_of_training_that_does_not_work_is_found_before_the_teacher_runs(given, tmp_path):
    values = {**given.to_dict(), "output_dir": str(tmp_path)}
    values["training"] = {**values["training"], "optim": "grokadamw"}
    with pytest.raises(RecipeError, match=r"^training: a trial in small"):
        run(type(given).from_dict(values), progress=False)
    assert not (tmp_path / "stages" / "teacher.json").exists()
