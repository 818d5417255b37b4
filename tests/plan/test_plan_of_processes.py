"""Plans of several processes: what each takes, and the time of all."""

import dataclasses
from types import SimpleNamespace

import pytest

from hf_whittle.cli.plan import summary
from hf_whittle.errors import RecipeError, WhittleError
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.advice import problem_of
from hf_whittle.plan.facts import Memory, StagePlan
from hf_whittle.plan.shares import replicated, sharded
from hf_whittle.run.batches import own_arguments

TRAINING = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}


@pytest.fixture(scope="module")
def plans(make):
    """A plan of one process, one of two, and one of a process that trains on a half of each batch."""
    recipe, half = make(training=TRAINING), make(training={**TRAINING, "per_device_train_batch_size": 1})
    return plan_recipe(recipe), plan_recipe(recipe, processes=2), plan_recipe(half)


@pytest.mark.slow
def test_processes_divide_the_time_of_all_that_they_do_together(plans):
    one, two, _ = plans
    for stage in one.stages:
        own = two.stage(stage.name)
        assert (own.tokens, own.flops, own.disk) == (stage.tokens, stage.flops, stage.disk)
        assert own.hours == pytest.approx(stage.hours if stage.name == "healing" else stage.hours / 2)
    assert two.processes == 2 and "on 2 devices of a100-80gb" in summary(two) and "that of each process" in summary(two)


@pytest.mark.slow
def test_each_process_holds_its_part_of_a_batch_and_gradients_twice(plans):
    one, two, half = plans
    for name in ("student", "baseline"):
        memory, alone = two.stage(name).memory, half.stage(name).memory
        assert memory == replicated(alone)
        assert memory.gradients == 2 * alone.gradients and memory.peak == alone.peak + alone.gradients
        assert memory.activations < one.stage(name).memory.activations
    assert two.stage("search").memory == one.stage("search").memory


def test_sharded_weights_are_divided_beside_the_layers_that_run():
    memory = Memory(weights=1000, optimizer=800, gradients=400, activations=50, logits=20, evaluation=30, peak=2270)
    own = sharded(memory, 4, layer=10)
    assert (own.weights, own.optimizer, own.gradients) == (270, 200, 110)
    assert own.peak == 2270 - 730 - 600 - 290 and own.activations == 50
    in_evaluation = sharded(dataclasses.replace(memory, evaluation=900, peak=2700), 4, layer=10)
    assert in_evaluation.peak == 270 + 200 + 900


@pytest.mark.slow
def test_fsdp_takes_less_of_each_device_than_ddp(make):
    fsdp = {**TRAINING, "fsdp": True, "fsdp_config": {"version": 2}}
    plain, shared = (plan_recipe(make(training=each, baseline=False), processes=6) for each in (TRAINING, fsdp))
    own, other = shared.stage("student").memory, plain.stage("student").memory
    assert own.optimizer == pytest.approx(other.optimizer / 6, abs=1) and own.peak < other.peak
    assert own.weights < other.weights


def test_advice_for_processes_is_in_the_keys_of_the_recipe(make):
    recipe = make(training={**TRAINING, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1})
    memory = Memory(weights=100, optimizer=200, gradients=100, activations=3200, peak=3600)
    stage = StagePlan("student", tokens=1, flops=1, is_bound=False, memory=memory, processes=2)
    own = own_arguments(recipe, recipe.output_dir, 2)
    problem = problem_of(stage, SimpleNamespace(recipe=recipe, available=2000), None, own)
    assert "training.per_device_train_batch_size: 16 with gradient_accumulation_steps: 4" in problem.changes
    assert any(change.startswith("training.fsdp: true") for change in problem.changes)


def test_processes_that_cannot_divide_a_batch_or_share_a_cpu_are_errors(make):
    recipe = make(training=TRAINING)
    with pytest.raises(RecipeError, match=r"^training: 4 processes cannot divide a step of 6 blocks"):
        plan_recipe(recipe, processes=4)
    with pytest.raises(WhittleError, match="processes must be at least 1, got 0"):
        plan_recipe(recipe, processes=0)
    with pytest.raises(WhittleError, match="for devices of their own; name one of them"):
        plan_recipe(recipe, None, processes=2)
