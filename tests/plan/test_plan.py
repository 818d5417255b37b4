"""Plans against runs: tokens and FLOPs are those of `results.json`, or bound them."""

import dataclasses
import json
import math

import pytest
from fixtures_slow import slow_but
from transformers import AutoConfig, AutoTokenizer

from hf_whittle import SearchResult, SubnetConfig
from hf_whittle.cli import main
from hf_whittle.cli.plan import summary, time_in_words
from hf_whittle.cost import flops_per_token, num_parameters
from hf_whittle.distillation.store.encodings import Samples
from hf_whittle.errors import BinError, CheckpointError, DataError, RecipeError, VocabularyError, WhittleError
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.devices import DEVICES
from hf_whittle.run import run
from hf_whittle.run.inputs import Inputs

ONE = {
    "bin": {"low": 1, "high": 1e9},
    "space": {
        "layer_wise": False,
        "hidden_size": [24, 24, 1],
        "num_hidden_layers": [3, 3, 1],
        "num_attention_heads": [3, 3, 1],
        "intermediate_size": [32, 32, 1],
    },
}
"""Sections whose only subnet is known before the search."""


@pytest.fixture(scope="module")
def planned_for_found(recipe, results):
    """The plan for the student that the search found."""
    return plan_recipe(recipe, subnet=SearchResult.load(recipe.output_dir).best, read_text=True)


def flops_of(training):
    return training["tokens"] * sum(training["flops_per_token"].values())


@pytest.mark.slow
def test_tokens_are_those_of_the_run(plan, results):
    search, healing = results["search"], results["healing"]
    assert plan.stage("search").tokens == search["tokens"]
    assert plan.stage("search").evaluations == search["evaluations"]
    assert plan.stage("healing").tokens == healing["tokens"] + healing["held_out_tokens"]
    assert plan.stage("teacher").tokens == results["teacher"]["test_tokens"]
    for name in ("student", "baseline"):
        assert plan.stage(name).tokens == results[name]["tokens"]


@pytest.mark.slow
def test_flops_bound_those_of_the_run(plan, results):
    assert not plan.is_student_known and plan.student >= results["student"]["parameters"]
    assert all(plan.stage(name).is_bound for name in ("search", "healing", "student", "baseline"))
    assert results["search"]["flops"] <= plan.stage("search").flops
    assert results["healing"]["flops"] <= plan.stage("healing").flops
    for name in ("student", "baseline"):
        assert flops_of(results[name]) <= plan.stage(name).flops <= 2 * flops_of(results[name])
    assert plan.stage("search").likely_flops < plan.stage("search").flops


def test_flops_of_a_known_student_are_those_of_the_run(planned_for_found, results):
    assert planned_for_found.is_student_known
    assert planned_for_found.student == results["student"]["parameters"]
    assert planned_for_found.teacher == results["teacher"]["parameters"]
    assert results["healing"]["flops"] <= planned_for_found.stage("healing").flops
    for name in ("student", "baseline"):
        stage = planned_for_found.stage(name)
        assert stage.flops == flops_of(results[name]) and not stage.is_bound


@pytest.mark.slow
def test_the_costs_of_the_only_subnet_of_a_bin_are_known(make):
    search = {"algorithm": "random", "evaluations": 1, "fitness": "perplexity", "batch_size": 4}
    recipe = make(**ONE, search=search, heal=False, baseline=False)
    plan, results = plan_recipe(recipe), run(recipe, progress=False)
    assert plan.is_student_known and not plan.stage("student").is_bound
    assert plan.stage("search").flops == results["search"]["flops"]
    assert plan.stage("student").flops == flops_of(results["student"])
    assert plan.student == results["student"]["parameters"]


@pytest.mark.slow
def test_steps_of_epochs_need_the_text(make):
    recipe = make(training={"num_train_epochs": 2, "per_device_train_batch_size": 4})
    with pytest.raises(RecipeError, match=r"give training\.max_steps, or --read-text"):
        plan_recipe(recipe)
    tokens = plan_recipe(recipe, read_text=True).stage("student").tokens
    assert tokens == 2 * len(Inputs(recipe).blocks["train"]) * recipe.data.block_size


@pytest.mark.slow
def test_the_tokens_of_a_stream_come_from_its_steps(make, recipe, plan):
    data = recipe.to_dict()["data"] | {"streaming": True}
    streamed = [plan_recipe(make(data=data), read_text=read_text) for read_text in (False, True)]
    for other in streamed:
        assert [stage.tokens for stage in other.stages] == [stage.tokens for stage in plan.stages]
        assert any("reads about 3,413 tokens of text to find the held-out blocks" in note for note in other.notes)
        assert not any("--read-text" in note for note in other.notes)


@pytest.mark.slow
def test_importance_scores_are_counted(make, recipe, plan):
    space = {"granularity": "fine", "layer_wise": True, "importance": "taylor"}
    scored = plan_recipe(make(space=space)).stage("search")
    assert scored.tokens - plan.stage("search").tokens == recipe.data.search_tokens


@pytest.mark.slow
def test_a_teacher_of_its_own_takes_the_place_of_the_super_network(make, plan, teacher_folder):
    apart = plan_recipe(make(supernet=str(teacher_folder)))
    for name in ("search", "healing", "teacher", "student", "baseline"):
        assert apart.stage(name).memory == plan.stage(name).memory


@pytest.mark.slow
def test_a_store_that_is_not_written_yet_is_a_stage(make, plan, tmp_path):
    stored = plan_recipe(make(teacher_store=str(tmp_path / "store")))
    store, student = stored.stage("store"), stored.stage("student")
    assert store.tokens == student.tokens and store.disk == store.tokens * Samples(300).bytes_per_token
    assert student.flops == plan.stage("student").flops and student.hours < plan.stage("student").hours
    assert any("hf-whittle store-logits writes it" in note for note in stored.notes)


@pytest.mark.slow
def test_a_store_saves_no_time_where_nothing_learns_from_the_teacher(make, tmp_path):
    training = {"max_steps": 6, "per_device_train_batch_size": 2, "beta": 0.0}
    plain = plan_recipe(make(training=training))
    stored = plan_recipe(make(training=training, teacher_store=str(tmp_path / "store")))
    assert stored.stage("student").hours == plain.stage("student").hours


@pytest.mark.slow
def test_other_devices_are_told_the_time_that_they_take(make, tmp_path):
    recipe = make(teacher_store=str(tmp_path / "store"))
    on_h100 = summary(plan_recipe(recipe, "h100", utilization=0.5))
    expected = time_in_words(plan_recipe(recipe, "l4", utilization=0.5).hours)
    assert f", l4 {expected}," in on_h100


@pytest.mark.slow
def test_hours_are_flops_at_the_rate_of_the_device(recipe):
    half, all_of_it = (plan_recipe(recipe, "h100", utilization=share) for share in (0.5, 1.0))
    assert half.hours == pytest.approx(2 * all_of_it.hours)
    stage = half.stage("student")
    expected = (stage.flops + stage.other_flops) / (0.5 * DEVICES["h100"].fp32) / 3600
    assert stage.hours == pytest.approx(expected)


@pytest.mark.slow
def test_mixed_precision_runs_at_the_rate_of_bf16(make):
    plan = plan_recipe(make(training={"max_steps": 6, "bf16": True}), "h100", utilization=1.0)
    stage = plan.stage("student")
    assert stage.precision == "bf16"
    assert stage.hours == pytest.approx((stage.flops + stage.other_flops) / DEVICES["h100"].bf16 / 3600)


@pytest.mark.slow
def test_a_stage_that_does_not_fit_says_what_to_change(make):
    recipe = make(training={"max_steps": 6, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 1})
    needed = plan_recipe(recipe).stage("student").memory.peak
    small = dataclasses.replace(DEVICES["t4"], memory=needed - 1)
    problems = {problem.stage: problem for problem in plan_recipe(recipe, small).problems}
    assert problems["student"].needed == needed
    changes = " ".join(problems["student"].changes)
    assert all(word in changes for word in ("training.bf16: true", "activation_checkpointing: true", "adamw_bnb_8bit"))


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named_as_the_reason(recipe, plan):
    device = dataclasses.replace(DEVICES["t4"], memory=plan.stage("student").memory.weights)
    problems = {problem.stage: problem for problem in plan_recipe(recipe, device).problems}
    assert "weights, optimizer and gradients alone take" in problems["student"].changes[-1]
    assert not any("batch_size" in change for change in problems["student"].changes)
    assert problems["healing"].changes[-1] == "a smaller super-network, or a device with more memory"


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(["student", "baseline"], "student"))
def test_the_change_of_a_batch_makes_it_fit(make, name):
    training = {"max_steps": 6, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 1}
    peaks = {
        batch: plan_recipe(make(training={**training, "per_device_train_batch_size": batch})).stage(name).memory
        for batch in (4, 16)
    }
    device = dataclasses.replace(DEVICES["t4"], memory=peaks[4].peak)
    problems = {problem.stage: problem for problem in plan_recipe(make(training=training), device).problems}
    advised = next(change for change in problems[name].changes if "train_batch_size" in change)
    batch = int(advised.split(": ")[1].split()[0])
    assert 1 <= batch < 16
    changed = {**training, "per_device_train_batch_size": batch}
    assert plan_recipe(make(training=changed)).stage(name).memory.peak <= device.memory


@pytest.mark.parametrize(
    "changes, options, error, message",
    [
        ({}, {"device": "abacus"}, WhittleError, "unknown device 'abacus'; give one of t4, v100"),
        ({}, {"utilization": 1.5}, WhittleError, "utilization must be above 0 and at most 1, got 1.5"),
        ({"teacher": "no/folder"}, {}, CheckpointError, "cannot load the checkpoint 'no/folder'"),
        ({"bin": {"low": 1, "high": 2}}, {}, BinError, "no subnet of this space lies in the bin"),
        ({}, {"subnet": SubnetConfig(512, 1, 1, 1)}, ValueError, "hidden_size"),
        ({}, {"subnet": SubnetConfig(8, 1, 1, 8)}, BinError, "outside the recipe's bin, 30000 to 40000 parameters"),
    ],
)
def test_errors(make, changes, options, error, message):
    with pytest.raises(error, match=message):
        plan_recipe(make(**changes), **options)


@pytest.mark.slow
def test_a_teacher_with_another_vocabulary_is_an_error(make, recipe, teacher_folder, tmp_path):
    config = AutoConfig.from_pretrained(teacher_folder)
    config.vocab_size -= 1
    config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path)
    apart = {"supernet": str(teacher_folder), "teacher": str(tmp_path)}
    with pytest.raises(VocabularyError, match="vocabulary has 300 entries, the teacher's 299"):
        plan_recipe(make(**apart))
    plan_recipe(make(**apart, training={"max_steps": 2, "beta": 0.0}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, number",
    [
        ({"eval_steps": 2}, 1 + 3),
        ({"eval_steps": 4}, 1 + 2),
        ({"eval_strategy": "no"}, 1 + 1),
        ({"eval_strategy": "no", "eval_on_start": False}, 1),
    ],
)
def test_evaluations_are_counted(make, settings, number):
    plan = plan_recipe(make(training={"max_steps": 6, **settings}, baseline=False))
    forward = plan.stage("student").flops // plan.stage("student").tokens - flops_of_teacher(make())
    evaluated = number * make().data.test_tokens
    assert plan.stage("student").other_flops == evaluated * forward // 3


def flops_of_teacher(recipe):
    return flops_per_token(AutoConfig.from_pretrained(recipe.teacher), sequence_length=recipe.data.block_size)


def test_blocks_longer_than_positions_are_an_error(make, recipe):
    data = {**vars(recipe.data), "block_size": 4096}
    with pytest.raises(DataError, match="block_size 4096 exceeds the 64 positions"):
        plan_recipe(make(data=data))


@pytest.mark.slow
def test_the_change_of_an_evaluation_makes_it_fit(make):
    training = {"max_steps": 6, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 16}
    few = plan_recipe(make(training={**training, "per_device_eval_batch_size": 4})).stage("student").memory
    device = dataclasses.replace(DEVICES["t4"], memory=few.peak)
    problems = {problem.stage: problem for problem in plan_recipe(make(training=training), device).problems}
    name, advised = problems["student"].changes[0].removeprefix("training.").split(": ")
    assert name == "per_device_eval_batch_size" and 4 <= int(advised) < 16
    for batch, does_fit in ((int(advised), True), (int(advised) + 1, False)):
        peak = plan_recipe(make(training={**training, name: batch})).stage("student").memory.peak
        assert (peak <= device.memory) == does_fit


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, section", [("search", "search"), pytest.param("healing", "heal", marks=pytest.mark.slow)]
)
def test_the_change_of_blocks_at_a_time_makes_it_fit(make, recipe, stage, section):
    """Logits in chunks do not grow with it, and a batch that is larger than the text has blocks does not count."""
    data = {**vars(recipe.data), "search_tokens": 256, "calibration_tokens": 512}
    sections = {"search": {"algorithm": "random", "evaluations": 2, "fitness": "perplexity"}, "heal": {}}

    def planned(batch, device="t4"):
        changed = {**sections, section: {**sections[section], "batch_size": batch}}
        return plan_recipe(make(data=data, baseline=False, **changed), device)

    fits = planned(1 if stage == "healing" else 4).stage(stage).memory.peak
    device = dataclasses.replace(DEVICES["t4"], memory=fits)
    problems = {problem.stage: problem for problem in planned(64, device).problems}
    name, advised = problems[stage].changes[0].split(": ")
    assert name == f"{section}.batch_size"
    peaks = [planned(batch).stage(stage).memory.peak for batch in (int(advised), int(advised) + 1)]
    assert peaks[0] <= fits < peaks[1]


def test_the_command_prints_tables_and_json(recipe, plan, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert main(["plan", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"at most {plan.student:,} parameters" in printed and "Every stage fits into the 80.0 GB" in printed
    assert main(["plan", str(path), "--json", "--device", "h200"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["device"]["name"] == "h200"
    assert [stage["name"] for stage in values["stages"]] == ["search", "healing", "teacher", "student", "baseline"]
    assert values["stages"][0]["flops"] == plan.stage("search").flops


@pytest.mark.slow
def test_the_command_takes_a_subnet_from_its_file_or_folder(recipe, planned_for_found, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    SearchResult.load(recipe.output_dir).best.save_pretrained(tmp_path)
    for subnet in (tmp_path, tmp_path / "subnet.json"):
        assert main(["plan", str(path), "--subnet", str(subnet)]) == 0
        assert f"A student of {planned_for_found.student:,} parameters" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_measures_this_machine(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_whittle.plan.devices.SECONDS", 0.0)
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert main(["plan", str(path), "--measure", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["device"]["utilization"] == 1 and values["device"]["fp32"] > 0
    assert math.isfinite(values["hours"])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--measure", "--device", "h100"], "--measure finds the speed of this machine"),
        (["--utilization", "0"], "utilization must be above 0"),
        (["--subnet", "nowhere.json"], "cannot read the subnet nowhere.json: No such file"),
        (["--subnet", __file__], "is not JSON"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(recipe, tmp_path, capsys, options, message):
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert main(["plan", str(path), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.startswith("hf-whittle: error: ")


def test_counts_of_the_teacher(recipe, plan):
    config = AutoConfig.from_pretrained(recipe.teacher)
    assert plan.teacher == plan.supernet == num_parameters(config)
    stage, length = plan.stage("teacher"), recipe.data.block_size
    assert stage.flops == stage.tokens * flops_per_token(config, sequence_length=length)
