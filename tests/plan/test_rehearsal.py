"""Rehearsals count the bytes that the same code holds on tensors with memory."""

import copy

import pytest
import torch
from fixtures_slow import slow_but
from small_models import OTHERS, VARIANTS, draw_subnet
from torch.autograd.graph import saved_tensors_hooks

from hf_whittle import DistillationConfig
from hf_whittle.cost import num_parameters
from hf_whittle.models.student import student_config
from hf_whittle.plan.models import build
from hf_whittle.plan.rehearsal import rehearse
from hf_whittle.plan.training_memory import Step, cross_entropy_memory, optimizer_bytes

LENGTH = 48


@pytest.fixture
def step(tmp_path):
    def make(**values):
        values = {"per_device_train_batch_size": 4, **values}
        return Step(DistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **values), LENGTH)

    return make


def test_tensors_are_counted_while_they_are_held():
    with rehearse() as rehearsal:
        one = torch.zeros(10, 100)
        view = one.T
        assert rehearsal.held == 4000
        two = view @ one
        assert rehearsal.held == 4000 + 40000
        del two
        assert (rehearsal.held, rehearsal.peak) == (4000, 44000)
        assert rehearsal.restart() == rehearsal.peak == 4000 and rehearsal.highest == 44000
        assert rehearsal.begin() == rehearsal.highest == 4000
        del one, view
    assert rehearsal.held == 0


def test_results_that_depend_on_values_are_taken_to_be_all_rows():
    with rehearse(rows=3) as rehearsal:
        ones = torch.ones(5)
        assert len((ones == 1).nonzero()) == 3 and len(ones[ones == 1]) == 5
        assert ones.sum().item() == 0
    assert rehearsal.peak > 0


def test_models_are_in_single_precision_whatever_their_files_are(tiny_config):
    config = copy.deepcopy(tiny_config)
    config.dtype = torch.float16
    with rehearse():
        assert build(config).dtype == torch.float32


def test_weights_take_the_memory_of_the_parameters(tiny_config):
    with rehearse() as rehearsal:
        before = rehearsal.held
        model = build(tiny_config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        buffers = sum(buffer.untyped_storage().nbytes() for buffer in model.buffers())
        assert 4 * parameters <= rehearsal.held - before <= 4 * parameters + 2 * buffers + 1000


@pytest.mark.parametrize("settings", [{}, {"use_parallel_residual": False}, {"model_type": "llama"}])
def test_activations_are_what_autograd_saves(make_stock, settings):
    stock = make_stock(**settings).train()
    with rehearse() as rehearsal:
        model, input_ids = build(stock.config).train(), torch.zeros(4, LENGTH, dtype=torch.long)
        start = rehearsal.restart()
        states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        counted = rehearsal.held - start
        del states
    saved: dict = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in stock.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = stock.base_model(input_ids=torch.zeros(4, LENGTH, dtype=torch.long), use_cache=False)
    del states
    held = sum(tensor.untyped_storage().nbytes() for at, tensor in saved.items() if at not in weights)
    assert counted == pytest.approx(held, rel=0.05)


@pytest.mark.slow
def test_memory_of_a_step_follows_its_settings(step, tiny_config):
    plain, twice = (step(per_device_train_batch_size=batch).memory(tiny_config, tiny_config) for batch in (4, 8))
    assert twice.activations == pytest.approx(2 * plain.activations, rel=0.05)
    assert step(activation_checkpointing=True).memory(tiny_config, tiny_config).activations < plain.activations / 2
    with_text_alone = step(beta=0.0).memory(tiny_config, None)
    assert with_text_alone.activations < plain.activations
    of_states = step(hidden_weight=1.0).memory(tiny_config, tiny_config).activations - plain.activations
    assert of_states == 4 * 4 * LENGTH * tiny_config.hidden_size * tiny_config.num_hidden_layers
    gradients = 4 * build_parameters(tiny_config)
    accumulated = step(gradient_accumulation_steps=2).memory(tiny_config, tiny_config)
    assert accumulated.peak - plain.peak == pytest.approx(gradients, rel=0.2)
    on_gpu = copy.copy(step())
    object.__setattr__(on_gpu, "on_cpu", False)
    assert on_gpu.memory(tiny_config, tiny_config).logits > plain.logits


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but([*VARIANTS, *OTHERS], "eager", "gemma3", "llama"))
def test_students_of_every_architecture_are_rehearsed(step, make_stock, name):
    config = make_stock(**{**VARIANTS, **OTHERS}[name]).config
    subnet = draw_subnet(config, 3)
    student, gradients = student_config(config, subnet), 4 * num_parameters(config, subnet)
    found = step().memory(student, config)
    assert found.peak >= max(found.activations, gradients) and found.logits > 0
    assert step().evaluation(student) > 0


def build_parameters(config):
    with rehearse():
        return sum(parameter.numel() for parameter in build(config).parameters())


@pytest.mark.slow
def test_an_evaluation_holds_logits_of_a_chunk_of_tokens(step, make_stock):
    vocabulary = 5000  # so many that logits are most of the memory
    chunk = 4 * LENGTH * vocabulary
    config = make_stock(vocab_size=vocabulary).config
    assert step(per_device_eval_batch_size=2).evaluation(config) >= 2 * chunk
    few, many = (cross_entropy_memory(config, blocks, LENGTH) for blocks in (4, 8))
    assert few >= 2 * chunk and many - few < chunk
    capped = make_stock(model_type="gemma3_text", final_logit_softcapping=3.0, vocab_size=vocabulary).config
    few, many = (cross_entropy_memory(capped, blocks, LENGTH) for blocks in (4, 8))
    assert many - few >= 4 * chunk  # all logits of a batch


def test_bytes_of_optimizers(step):
    optimizers = {"adamw_torch_fused": 800, "adamw_torch_8bit": 200, "adafactor": 10, "sgd": 0}
    optimizers |= {"paged_ademamix_8bit": 300, "ademamix": 1200, "rmsprop_bnb_8bit": 100, "schedule_free_sgd": 400}
    assert {name: optimizer_bytes(step(optim=name).args, 100) for name in optimizers} == optimizers
