"""Gathered slices are kept while no weight changes, and gathered anew after a change."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.models.elastic import Elastic

CLOSE = {"rtol": 0, "atol": 1e-5}
ROUNDING = {torch.float16: 0.02, torch.float32: 1e-5, torch.float64: 1e-12}
CHANNELS, HEADS, NEURONS = [*range(20), 25, 31], [1, 3], [*range(3, 50, 2)]
SUBNETS = {
    "all by index": SubnetConfig(CHANNELS, [0, 2, 4], [HEADS] * 3, [NEURONS] * 3),
    "channels by index": SubnetConfig(CHANNELS, [0, 2, 4], 3, 40),
    "heads and neurons by index": SubnetConfig(24, [0, 2, 4], [HEADS] * 3, [NEURONS] * 3),
}
NOT_RECORDING = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
SUBNET = SUBNETS["all by index"]
each_subnet = pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
each_mode = pytest.mark.parametrize("not_recording", NOT_RECORDING.values(), ids=NOT_RECORDING)


@pytest.fixture
def model(supernet):
    """A super-network whose weights may be changed; none of them was changed in place so far."""
    return copy.deepcopy(supernet)


def logits(model, input_ids, mode=torch.no_grad):
    with mode():
        return model(input_ids=input_ids).logits.clone()


def assert_is_the_student(model, subnet, input_ids, mode=torch.no_grad):
    """Assert that the active subnet computes the same as a student extracted now."""
    student = extract_subnet(model, subnet)
    of_subnet, of_student = logits(model, input_ids, mode), logits(student, input_ids)
    torch.testing.assert_close(of_subnet, of_student, rtol=0, atol=ROUNDING[model.dtype])


def gathered(model):
    """Gathered slices in use that are not views of their parameters, by name."""
    parts = {}
    for name, module in model.named_modules():
        if not isinstance(module, Elastic) or isinstance(module, nn.Embedding) or module.chosen is None:
            continue
        for parameter_name, parameter in module.named_parameters():
            if any(map(torch.is_tensor, module.chosen[: parameter.ndim])):
                parts[f"{name}.{parameter_name}"] = module.in_use(parameter_name)
    return parts


# Slices that are kept


@each_subnet
@each_mode
def test_gathered_weights_are_kept_from_one_forward_to_the_next(model, input_ids, subnet, not_recording):
    with model.active_subnet(subnet), not_recording():
        model(input_ids)
        first = gathered(model)
        model(input_ids)
        model(input_ids[:, :5])
        second = gathered(model)
    assert len(first) > 10 and first.keys() == second.keys()
    assert [name for name in first if first[name] is not second[name]] == []


@each_subnet
@each_mode
def test_kept_weights_are_those_of_the_student(model, input_ids, subnet, not_recording):
    with model.active_subnet(subnet):
        for _ in range(3):
            assert_is_the_student(model, subnet, input_ids, not_recording)


def test_weights_kept_in_one_mode_serve_in_the_other(model, input_ids):
    with model.active_subnet(SUBNET):
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            assert_is_the_student(model, SUBNET, input_ids, mode)


def test_prefixes_are_views_and_not_kept(model):
    with model.active_subnet(SubnetConfig(24, 3, 2, 40)), torch.no_grad():
        assert not gathered(model)
        module = model.gpt_neox.layers[0].mlp.dense_h_to_4h
        assert module.in_use("weight").data_ptr() == module.weight.data_ptr()
        assert module.in_use("bias").data_ptr() == module.bias.data_ptr()


# Slices that are gathered anew


def train(model, input_ids, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **settings)
    with torch.enable_grad():
        model(input_ids, labels=input_ids).loss.backward()
    optimizer.step()


def scale(model, mode):
    with mode():
        for parameter in model.parameters():
            parameter.mul_(0.7)


def scaled(model):
    return {name: 0.7 * tensor.detach().clone() for name, tensor in model.state_dict().items()}


def replace_parameters(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter((0.7 * parameter).detach()))


def round_to_half_precision(model):
    model.half().float()


CHANGES = {
    "a step of the optimizer": lambda model, ids: train(model, ids, foreach=False),
    "a step of all weights at once": lambda model, ids: train(model, ids, foreach=True),
    "a fused step": lambda model, ids: train(model, ids, fused=True),
    "in place without gradients": lambda model, ids: scale(model, torch.no_grad),
    "in place in inference mode": lambda model, ids: scale(model, torch.inference_mode),
    "load_state_dict": lambda model, ids: model.load_state_dict(scaled(model)),
    "load_state_dict that assigns": lambda model, ids: model.load_state_dict(scaled(model), assign=True),
    "other parameters": lambda model, ids: replace_parameters(model),
    "half precision": lambda model, ids: model.half(),
    "half precision and back": lambda model, ids: round_to_half_precision(model),
    "double precision": lambda model, ids: model.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@each_mode
def test_changed_weights_are_gathered_anew(model, input_ids, not_recording, change):
    with model.active_subnet(SUBNET):
        before = logits(model, input_ids, not_recording)
        change(model, input_ids)
        assert not torch.equal(logits(model, input_ids, not_recording), before)
        assert_is_the_student(model, SUBNET, input_ids, not_recording)


def test_parameters_lent_for_one_call_are_used_in_this_call_alone(model, input_ids):
    lent = copy.deepcopy(model)
    scale(lent, torch.no_grad)
    parameters = {name: parameter.detach().clone() for name, parameter in lent.named_parameters()}
    with model.active_subnet(SUBNET), torch.no_grad():
        before = model(input_ids).logits
        of_call = functional_call(model, parameters, (input_ids,)).logits
        assert torch.equal(model(input_ids).logits, before)
    torch.testing.assert_close(of_call, logits(extract_subnet(lent, SUBNET), input_ids), **CLOSE)


def test_copy_made_in_the_block_runs_on_its_own_weights(model, input_ids):
    scale(model, torch.no_grad)  # so that both have the same version counter
    with model.active_subnet(SUBNET):
        before = logits(model, input_ids)
        twin = copy.deepcopy(model)
        scale(twin, torch.no_grad)
        assert_is_the_student(twin, SUBNET, input_ids)
        assert torch.equal(logits(model, input_ids), before)


# Slices that are dropped


def watched(model, input_ids, mode=torch.no_grad):
    """Weak references to gathered slices."""
    with mode():
        model(input_ids)
        return [weakref.ref(part) for part in gathered(model).values()]


def assert_gone(references):
    gc.collect()
    assert len(references) > 10 and not any(reference() is not None for reference in references)


def test_nothing_is_kept_after_the_block(model, input_ids):
    full = logits(model, input_ids)
    with model.active_subnet(SUBNET):
        references = watched(model, input_ids)
        assert all(reference() is not None for reference in references)
    assert_gone(references)
    assert torch.equal(logits(model, input_ids), full)


def test_nothing_is_kept_after_an_exception(model, input_ids):
    with pytest.raises(KeyboardInterrupt), model.active_subnet(SUBNET):
        references = watched(model, input_ids)
        raise KeyboardInterrupt
    assert_gone(references)


def test_another_subnet_gathers_its_own(model, input_ids):
    other = SubnetConfig([1, 5, *range(9, 30)], [1, 2, 3], [[0, 3]] * 3, [[*range(1, 60, 3)]] * 3)
    with model.active_subnet(SUBNET):
        references = watched(model, input_ids)
        with model.active_subnet(other):
            assert_gone(references)
            assert_is_the_student(model, other, input_ids)
        assert_is_the_student(model, SUBNET, input_ids)


def test_full_model_uses_its_parameters_themselves(model):
    with torch.no_grad():
        assert all(
            module.in_use(name) is parameter
            for module in model.modules()
            if isinstance(module, Elastic)
            for name, parameter in module.named_parameters()
        )


# Training


def gradients(model, input_ids):
    model.zero_grad()
    model(input_ids, labels=input_ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_what_is_gathered_to_train_is_not_kept(model, input_ids):
    with model.active_subnet(SUBNET):
        references = watched(model, input_ids)
        gradients(model, input_ids)
        assert_gone(references)
        first, second = gathered(model), gathered(model)
        assert all(first[name] is not second[name] and first[name].grad_fn is not None for name in first)


@each_subnet
@each_mode
def test_gradients_after_an_evaluation_are_those_without_one(model, input_ids, subnet, not_recording):
    untouched = copy.deepcopy(model)
    with model.active_subnet(subnet), untouched.active_subnet(subnet):
        logits(model, input_ids, not_recording)
        ours, expected = gradients(model, input_ids), gradients(untouched, input_ids)
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, **CLOSE)
        assert_is_the_student(model, subnet, input_ids, not_recording)


@each_mode
def test_training_and_evaluation_in_turn_are_those_of_the_student(model, input_ids, not_recording):
    student = extract_subnet(model, SUBNET)
    ours, theirs = (torch.optim.SGD(trained.parameters(), lr=0.01) for trained in (model, student))
    with model.active_subnet(SUBNET):
        for _ in range(4):
            for trained, optimizer in ((model, ours), (student, theirs)):
                gradients(trained, input_ids)
                optimizer.step()
            of_student = logits(student, input_ids)
            torch.testing.assert_close(logits(model, input_ids, not_recording), of_student, rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_with_checkpointing_are_those_without(model, input_ids, use_reentrant):
    model.train()
    with model.active_subnet(SUBNET):
        expected = gradients(model, input_ids)
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        got = gradients(model, input_ids)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, **CLOSE)
