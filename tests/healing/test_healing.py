"""Healed students: compared with least squares on hidden states themselves, and never worse than sliced ones."""

import copy
import filecmp
import gc
import json
import math
import re
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fixtures_slow import slow_but
from fixtures_trained import TRAINED, train
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_whittle import HealingConfig, SearchSpace, SubnetConfig, extract_subnet
from hf_whittle.architectures.dimensions import CHANNELS, HEAD_CHANNELS, KEY_VALUE_HEADS, NEURONS, QUERIES
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.errors import DataError, HealingError, VocabularyError
from hf_whittle.extraction.checkpoint import Checkpoint
from hf_whittle.healing.healer import split_blocks
from hf_whittle.healing.hidden_states import HiddenStatesFile
from hf_whittle.healing.parts import (
    Basis,
    absorbs,
    apart,
    can_change_basis,
    head_matrix,
    normalized,
    output_matrix,
    projections,
)
from hf_whittle.healing.student_weights import StudentWeights
from hf_whittle.models.single_layer import SingleLayer
from hf_whittle.models.slicing import slice_weights, student_model
from hf_whittle.models.source import Source
from hf_whittle.subnet import Shape

CPU = torch.device("cpu")
FITTED_CLOSE = 1e-4  # weights fitted to hidden states that differ by rounding, as those of a model in a file may
FAST = {"batch_size": 128}
STOCK = SubnetConfig(24, [0, 2, 4], 3, 40)
SHALLOW = SubnetConfig(32, [0, 3], 4, 64)


@pytest.fixture(scope="module")
def text(supernet, sample_text):
    """Calibration text sampled from the super-network, and other text of it."""
    return sample_text(supernet, 120).split([80, 40])


@pytest.fixture(scope="module")
def variant_text(variant_supernet, sample_text):
    return sample_text(variant_supernet, 120).split([80, 40])


@pytest.fixture(scope="module")
def each_text(each_supernet, sample_text):
    return sample_text(each_supernet, 60).split([40, 20])


def heal(model, subnet, text, output_dir=None, format="auto", dtype=None, **changes):
    config = HealingConfig(**{**FAST, **changes})
    return extract_subnet(
        model, subnet, output_dir, format=format, dtype=dtype, heal=config, calibration_dataset=text, progress=False
    )


def perplexity_of(model, blocks):
    """Perplexity by the loss of transformers."""
    with torch.no_grad():
        return math.exp(min(700.0, model(blocks, labels=blocks, use_cache=False).loss.double()))


def assert_same_weights(found, expected, atol=0):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


@torch.no_grad()
def states(model, input_ids):
    """Hidden states `(tokens, channels)` before every layer, after the last one, and those normalized."""
    seen, table = [], get_architecture(model.config)
    layers, last = model.get_submodule(table.layers), model.get_submodule(table.weights[-1].norm)
    hooks = [module.register_forward_pre_hook(lambda _, a: seen.append(a[0])) for module in (*layers, last)]
    seen.append(model.base_model(input_ids, use_cache=False).last_hidden_state)
    for hook in hooks:
        hook.remove()
    return [one.flatten(0, 1).double() for one in seen]


@torch.no_grad()
def inputs_of(model, names, input_ids):
    seen = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, a, out: seen.append((a[0], out))) for name in names
    ]
    model(input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [tuple(part.flatten(0, 1).double() for part in pair) for pair in seen]


def with_one(x):
    return F.pad(x, (0, 1), value=1.0)


def predicted(x, y, of, reached=None):
    """Prediction for the rows `of` by numpy's least squares of `y` on `x`.

    Squares are relative to the root mean square of the hidden state that is `reached`, if there is one.
    """
    root = 1.0 if reached is None else reached.square().mean(1, keepdim=True) ** -0.25
    return of @ torch.from_numpy(np.linalg.lstsq((root * x).numpy(), (root * y).numpy(), rcond=None)[0])


# The basis


@pytest.fixture
def normal():
    """Normalized vectors of 12 channels that lie near a plane."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(500, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    return F.layer_norm(plane + 0.3 * torch.randn(500, 12, generator=generator), (12,))


@pytest.fixture(params=[2, 5, 11, 12])
def size(request):
    return request.param


@pytest.mark.parametrize("is_centered", [True, False])
def test_principal_basis_keeps_what_the_first_components_keep(normal, size, is_centered):
    down = Basis.principal(normal.T @ normal, size, is_centered).down
    _, _, components = np.linalg.svd(normal.double().numpy(), full_matrices=False)
    first = torch.from_numpy(components[: size - is_centered]).float()
    torch.testing.assert_close(down.T @ down, first.T @ first, rtol=0, atol=1e-4)


def test_principal_basis_is_orthonormal_among_the_vectors_of_mean_zero(normal, size):
    down = Basis.principal(normal.T @ normal, size, is_centered=True).down
    centering = torch.eye(size) - torch.ones(size, size) / size
    torch.testing.assert_close(down @ down.T, centering, rtol=0, atol=1e-5)
    torch.testing.assert_close(down.mean(0), torch.zeros(12), rtol=0, atol=1e-6)


def test_principal_basis_is_orthonormal_where_norms_do_not_subtract_the_mean(normal, size):
    down = Basis.principal(normal.T @ normal, size, is_centered=False).down
    torch.testing.assert_close(down @ down.T, torch.eye(size), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_centered", [True, False])
def test_way_back_from_the_principal_basis_undoes_the_scale_of_the_norm(normal, size, is_centered):
    basis = Basis.principal(normal.T @ normal, size, is_centered)
    reduced = normal @ basis.down.T
    normalized = reduced / reduced.square().mean().sqrt()
    torch.testing.assert_close(normalized @ basis.up.T, reduced @ basis.down, rtol=0, atol=5e-5)


@pytest.mark.parametrize("most", [1.5, -0.4])
def test_one_matrix_in_the_tied_basis_embeds_and_reads(normal, size, most):
    scale = most * torch.linspace(0.8, 1.2, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    scale[4] *= -1
    median = scale.median()
    gram, alike = normal.T @ normal, [channel for channel in range(12) if channel != 4]
    basis = Basis.tied(gram, size, scale)
    weight = (basis.down * scale * basis.up.T).sum(1) / basis.down.square().sum(1)
    ratio = weight[0] / scale[4]  # of the root mean square of the student's hidden states to the teacher's
    reduced = normal @ basis.down.T
    assert ratio == pytest.approx((reduced.square().mean() / normal.square().mean()).sqrt().item(), rel=1e-4)
    torch.testing.assert_close(reduced[:, 0], normal[:, 4])
    torch.testing.assert_close(weight[1:], ratio * median * torch.ones(size - 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(basis.down @ basis.up, ratio * torch.eye(size), rtol=0, atol=1e-5)
    root = (scale / median)[alike].sqrt()
    _, _, components = np.linalg.svd((normal[:, alike] * root).double().numpy(), full_matrices=False)
    first = torch.from_numpy(components[: size - 1]).float() * root
    rotated = basis.down[1:, alike]
    torch.testing.assert_close(rotated.T @ rotated, first.T @ first, rtol=0, atol=1e-4)
    if size == 12:
        head = (basis.down.T * weight) @ basis.down
        torch.testing.assert_close(head, ratio * scale.diag(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ([2.0, 1.1, 4.0, 2.0], [False, True, True, False]),
        ([-2.0, -2.0, -2.0, 2.0], [False, False, False, True]),
        ([0.0, 0.0, 0.0, 2.0], [True, True, True, True]),
        ([2.0, 2.0, math.nan, 2.0], [True, True, True, True]),
    ],
)
def test_channels_apart_are_those_scaled_unlike_most(scale, expected):
    assert apart(torch.tensor(scale)).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [0, 2, 16, 20])
def test_tied_students_keep_channels_where_too_many_are_apart(make_stock, sample_text, scaled):
    teacher = make_stock(model_type="llama", tie_word_embeddings=True)
    teacher.model.norm.weight.data.fill_(1.0)[:scaled] = 0.0  # 20 zeros of 32: the median is 0
    subnet = SubnetConfig.full(teacher.config).replaced({CHANNELS: 16})
    calibration = sample_text(teacher, 8)
    student = extract_subnet(teacher, subnet, heal=True, calibration_dataset=calibration, progress=False)
    assert student.healing.basis == ("principal" if scaled < 16 else "channels")


def test_all_components_change_nothing_but_the_basis(any_supernet, input_ids):
    any_supernet = copy.deepcopy(any_supernet)
    config, weights = any_supernet.config, any_supernet.state_dict()
    head, subnet = output_matrix(config), SubnetConfig.full(config)
    source = Source(weights, config, CPU)
    is_tied_behind_rms = head is None and get_architecture(config).norms.kind == "rms"
    is_free = absorbs(config) and (head is not None or is_tied_behind_rms)
    assert can_change_basis(source, 20) == is_free
    if not is_free:
        return
    if head is None:  # the last norm scales most channels alike
        scale = torch.where(torch.arange(config.hidden_size) % 10 == 3, -2.0, 1.5)
        weights[f"{head_matrix(config).norm}.weight"].copy_(scale - get_architecture(config).norms.offset)
    student = StudentWeights(source, subnet, slice_weights(weights, config, subnet), (1e-3,))
    normal = torch.cat([normalized(one.float(), config) for one in states(any_supernet, input_ids)])
    student.change_basis(normal.T @ normal)
    for group in projections(config):
        for position in range(5):
            for readers in group.readers:
                student.heal_readers(readers, position, None)
    if head is not None:
        student.heal_readers([head], 4, None)
    changed = student_model(config, subnet, student.tensors, torch.float32)
    before, after = (model.get_input_embeddings().weight for model in (any_supernet, changed))
    assert not torch.allclose(before, after, atol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(changed(input_ids).logits, any_supernet(input_ids).logits, rtol=1e-3, atol=1e-3)


# The regressions, compared with least squares on hidden states of the whole models

RAW = {"basis": "channels", "inputs": False, "outputs": False, "head": False, "ridge": [1e-6]}


@pytest.mark.parametrize(
    "variant_supernet", [{}, {"attention_bias": False}, {"tie_word_embeddings": True}], indirect=True
)
def test_outputs_of_a_layer_are_least_squares_of_the_hidden_states_before_the_next_kept_layer(
    variant_supernet, variant_text
):
    calibration, other = variant_text
    subnet = SubnetConfig([*range(20), 25, 31], [0, 2, 4], 2, 20)
    student = heal(variant_supernet, subnet, calibration, **{**RAW, "outputs": True})
    assert student.healing.is_healed
    unhealed, (fitted, _) = extract_subnet(variant_supernet, subnet), split_blocks(calibration, 0.2)
    names = ["gpt_neox.layers.0.attention.dense", "gpt_neox.layers.0.mlp.dense_4h_to_h"]
    x, of = (
        with_one(torch.cat([pair[0] for pair in inputs_of(unhealed, names, blocks)], 1)) for blocks in (fitted, other)
    )
    channels = list(subnet.hidden_size)
    target = states(variant_supernet, fitted)[2][:, channels] - states(unhealed, fitted)[0]
    reached = states(variant_supernet, fitted)[2]
    expected = states(unhealed, other)[0] + predicted(x, target, of, reached)
    torch.testing.assert_close(states(student, other)[1], expected, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_outputs_of_attention_and_then_of_the_mlp_are_least_squares_in_a_sequential_model(
    make_supernet, make_stock, sample_text
):
    supernet = make_supernet(make_stock(use_parallel_residual=False))
    calibration, other = sample_text(supernet, 120).split([80, 40])
    subnet = SubnetConfig(32, [0, 2, 4], 2, 20)
    student = heal(supernet, subnet, calibration, **{**RAW, "outputs": True})
    unhealed, (fitted, _) = extract_subnet(supernet, subnet), split_blocks(calibration, 0.2)
    attention, mlp = "gpt_neox.layers.0.attention.dense", "gpt_neox.layers.0.mlp.dense_4h_to_h"

    (x, _), (of, _) = (inputs_of(unhealed, [attention], blocks)[0] for blocks in (fitted, other))
    target = inputs_of(supernet, [attention], fitted)[0][1]  # the hidden states before it are the same
    (_, found) = inputs_of(student, [attention], other)[0]
    reached = states(supernet, fitted)[0] + target
    torch.testing.assert_close(found, predicted(with_one(x), target, with_one(of), reached), rtol=0, atol=2e-3)

    (x, _), (of, found) = (inputs_of(student, [mlp], blocks)[0] for blocks in (fitted, other))
    before, reached = (
        states(student, fitted)[0] + inputs_of(student, [attention], fitted)[0][1],
        states(supernet, fitted)[2],
    )
    found_by_formula = predicted(with_one(x), reached - before, with_one(of), reached)
    torch.testing.assert_close(found, found_by_formula, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant_supernet", [{}, {"use_parallel_residual": False}, {"attention_bias": False}], indirect=True
)
def test_inputs_of_the_first_layer_are_least_squares_of_the_normalized_hidden_states(variant_supernet, variant_text):
    calibration, other = variant_text
    subnet, name = SubnetConfig(22, 3, 2, 20), "gpt_neox.layers.0.attention.query_key_value"
    student = heal(variant_supernet, subnet, calibration, ridge=[5e-6])  # the features have mean 0: a rank is missing
    assert student.healing.is_healed
    fitted, _ = split_blocks(calibration, 0.2)
    y = inputs_of(variant_supernet, [name], fitted)[0][0]
    x, of = (with_one(F.layer_norm(states(student, blocks)[0], (22,))) for blocks in (fitted, other))
    matrix = variant_supernet.get_submodule(name)
    expected = predicted(x, y, of) @ matrix.weight.detach()[:48].double().T
    if matrix.bias is not None:
        expected += matrix.bias.detach()[:48].double()
    torch.testing.assert_close(inputs_of(student, [name], other)[0][1], expected, rtol=0, atol=5e-3)


GROUPED = SubnetConfig(
    [*range(20), 25, 31], [0, 2, 4], intermediate_size=40, num_key_value_heads=[[1]] * 3, num_key_value_groups=[1],
    head_dim=[0, 1, 4, 5, 6, 7],
)  # fmt: skip
"""Of heads of 8 channels, keeps the rotary pairs of channels 0 and 4, 2 and 6, 3 and 7."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_grouped_queries_are_healed_to_least_squares_of_the_hidden_states(
    make_stock, make_supernet, sample_text, model_type
):
    supernet = make_supernet(make_stock(model_type=model_type, attention_dropout=0.0))
    calibration, other = sample_text(supernet, 120).split([80, 40])
    student = heal(supernet, GROUPED, calibration, **{**RAW, "outputs": True})
    unhealed, (fitted, _) = extract_subnet(supernet, GROUPED), split_blocks(calibration, 0.2)
    channels, layer = list(GROUPED.hidden_size), "model.layers.0."
    attention, mlp = f"{layer}self_attn.o_proj", f"{layer}mlp.down_proj"

    (x, _), (of, _) = (inputs_of(unhealed, [attention], blocks)[0] for blocks in (fitted, other))
    assert x.shape[1] == 1 * 1 * 6
    reached = inputs_of(supernet, [attention], fitted)[0][1]
    target = reached[:, channels]
    if model_type != "gemma3_text":
        reached = reached + states(supernet, fitted)[0]
        target = reached[:, channels] - states(unhealed, fitted)[0]
    (_, found) = inputs_of(student, [attention], other)[0]
    torch.testing.assert_close(found, predicted(x, target, of, reached), rtol=0, atol=2e-3)

    (x, _), (of, found) = (inputs_of(student, [mlp], blocks)[0] for blocks in (fitted, other))
    reached = inputs_of(supernet, [mlp], fitted)[0][1]  # what passes a norm, or all until the next layer
    target = reached[:, channels]
    if model_type != "gemma3_text":
        reached = states(supernet, fitted)[2]
        target = reached[:, channels] - states(student, fitted)[0] - inputs_of(student, [attention], fitted)[0][1]
    torch.testing.assert_close(found, predicted(x, target, of, reached), rtol=0, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "cohere"])
def test_inputs_without_a_bias_are_least_squares_without_a_constant(make_stock, make_supernet, sample_text, model_type):
    supernet = make_supernet(make_stock(model_type=model_type))
    calibration, other = sample_text(supernet, 120).split([80, 40])
    student = heal(
        supernet, SubnetConfig.full(supernet.config).replaced({CHANNELS: 22}), calibration, ridge=RAW["ridge"]
    )
    assert student.healing.is_healed
    fitted, _ = split_blocks(calibration, 0.2)
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    if model_type == "cohere":  # attention and MLP read the same norm
        names += [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")]
    y = inputs_of(supernet, names, fitted)[0][0]
    x, of = (normalized(states(student, blocks)[0], student.config) for blocks in (fitted, other))
    for name, (_, found) in zip(names, inputs_of(student, names, other), strict=True):
        matrix = supernet.get_submodule(name)
        if matrix.bias is None:
            expected = predicted(x, y, of) @ matrix.weight.detach().double().T
        else:
            expected = (
                predicted(with_one(x), y, with_one(of)) @ matrix.weight.detach().double().T + matrix.bias.detach()
            )
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)
    assert student.healing.fits[0]["weights"] == " and ".join(names)


def test_head_is_least_squares_of_the_last_state(supernet, text):
    calibration, other = text
    subnet = SubnetConfig(22, 4, 3, 50)
    student = heal(supernet, subnet, calibration, **{**RAW, "basis": "principal", "head": True})
    assert student.healing.is_healed
    fitted, _ = split_blocks(calibration, 0.2)
    x, of = (with_one(F.layer_norm(states(student, blocks)[-2], (22,))) for blocks in (fitted, other))
    expected = predicted(x, states(supernet, fitted)[-1], of) @ supernet.lm_head.weight.detach().double().T
    with torch.no_grad():
        found = student(other, use_cache=False).logits.flatten(0, 1).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


# Healed students are better


def assert_healed(supernet, subnet, text):
    """Assert that healing changes weights alone, and improves perplexity on other text."""
    calibration, other = text
    healed, unhealed = heal(supernet, subnet, calibration), extract_subnet(supernet, subnet)
    assert type(healed) is type(unhealed)
    assert healed.config.to_dict() == unhealed.config.to_dict()
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (healed, unhealed)]
    assert shapes[0] == shapes[1]
    assert healed.healing.is_healed
    assert perplexity_of(healed, other) < perplexity_of(unhealed, other)


@pytest.mark.slow
def test_healed_student_of_every_space_is_better_on_other_text(supernet, text, space, draw):
    assert_healed(supernet, draw(space, 0), text)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_healed_student_of_every_kind_of_model_is_better_on_other_text(variant_supernet, variant_text, draw, seed):
    granularity = ("coarse", "fine")[seed]
    space = SearchSpace.from_config(variant_supernet.config, granularity, layer_wise=True)
    assert_healed(variant_supernet, draw(space, seed), variant_text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_but([name for name in TRAINED if name not in ("parallel", "sequential")], "llama")
)
def test_heads_neurons_channels_and_layers_of_every_architecture_are_healed(make_supernet, name):
    stock, *text = train(name)
    supernet = make_supernet(stock)
    full = SubnetConfig.full(supernet.config)
    for kept in ({KEY_VALUE_HEADS: 1, QUERIES: [1]}, {NEURONS: 40}, {CHANNELS: 24, HEAD_CHANNELS: [0, 1, 4, 5, 6, 7]}):
        assert_healed(supernet, full.replaced(kept), text)
    uneven = {KEY_VALUE_HEADS: [2, [1], 2], NEURONS: [20, 64, 30]}
    assert_healed(supernet, full.with_layers([0, 1, 3]).replaced(uneven), text)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**16),
    blocks=st.sampled_from([2, 3, 40]),
    length=st.sampled_from([2, 5, 16]),
    parts=st.fixed_dictionaries({name: st.booleans() for name in ("inputs", "outputs", "head")}),
    basis=st.sampled_from(["principal", "channels"]),
)
def test_student_is_never_worse_on_the_held_out_text(supernet, text, draw_within, seed, blocks, length, parts, basis):
    subnet, calibration = draw_within(Shape.from_config(supernet.config), seed), text[0][:blocks, :length]
    student = heal(supernet, subnet, calibration, basis=basis, **parts)
    unhealed, (fitted, held_out) = extract_subnet(supernet, subnet), split_blocks(calibration, 0.2)
    before, after = perplexity_of(unhealed, held_out), perplexity_of(student, held_out)
    report = student.healing
    assert after <= before
    assert report.perplexity_before == pytest.approx(before, rel=1e-4)
    assert min(report.perplexity_before, report.perplexity_after) == pytest.approx(after, rel=1e-4)
    assert (report.tokens, report.held_out_tokens) == (fitted.numel(), held_out.numel())
    if not report.is_healed:
        assert report.perplexity_after >= report.perplexity_before
        assert_same_weights(student, unhealed)


@pytest.mark.slow_after(1)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**16), blocks=st.sampled_from([2, 3, 40]), optional=st.booleans())
def test_student_of_every_architecture_is_never_worse_on_the_held_out_text(
    each_supernet, each_text, draw_within, seed, blocks, optional
):
    subnet, calibration = draw_within(each_supernet.config, seed, names_optional=optional), each_text[0][:blocks]
    student = heal(each_supernet, subnet, calibration)
    unhealed, (_, held_out) = extract_subnet(each_supernet, subnet), split_blocks(calibration, 0.2)
    assert perplexity_of(student, held_out) <= perplexity_of(unhealed, held_out)
    assert student.healing.is_healed or assert_same_weights(student, unhealed) is None


@pytest.mark.slow
def test_every_part_of_healing_helps(supernet, text, uneven_subnet):
    calibration, other = text
    steps = [
        {**RAW, "ridge": HealingConfig().ridge, **changes}
        for changes in (
            {"outputs": True},
            {"outputs": True, "basis": "principal"},
            {"outputs": True, "basis": "principal", "head": True},
            {"outputs": True, "basis": "principal", "head": True, "inputs": True},
        )
    ]
    found = [perplexity_of(extract_subnet(supernet, uneven_subnet), other)]
    found += [perplexity_of(heal(supernet, uneven_subnet, calibration, **step), other) for step in steps]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    "subnet",
    [
        SHALLOW,
        SubnetConfig(32, [2], 4, 64),
        SubnetConfig(2, [1, 3], 1, 2),
        SubnetConfig(1, [0, 4], 1, 1),
        SubnetConfig(31, 5, 4, 64),
    ],
    ids=["layers alone", "one layer", "two channels", "one channel", "all but one channel"],
)
def test_subnets_at_the_ends_are_healed(supernet, text, subnet):
    calibration, other = text
    student = heal(supernet, subnet, calibration)
    assert student.healing.is_healed
    assert perplexity_of(student, other) < perplexity_of(extract_subnet(supernet, subnet), other)


@pytest.mark.parametrize("variant_supernet", [{"attention_bias": False}, {"tie_word_embeddings": True}], indirect=True)
@pytest.mark.parametrize("channels", [1, 2])
def test_one_or_two_channels_without_biases_or_with_tied_embeddings_are_no_worse(
    variant_supernet, variant_text, channels
):
    report = heal(variant_supernet, SubnetConfig(channels, [1, 3], 1, 2), variant_text[0]).healing
    assert math.isfinite(report.perplexity_after)
    assert report.is_healed == (report.perplexity_after < report.perplexity_before)


@pytest.mark.slow
def test_full_subnet_stays_what_it_is(any_supernet, sample_text):
    full = SubnetConfig.full(any_supernet.config)
    student = heal(any_supernet, full, sample_text(any_supernet, 40))
    report = student.healing
    assert not report.is_healed and report.perplexity_after == report.perplexity_before
    assert all(fit["ridge"] is None and fit["before"] == fit["after"] < 1e-6 for fit in report.fits)
    assert_same_weights(student, extract_subnet(any_supernet, full))


@pytest.mark.slow
def test_layer_that_reads_nothing_is_healed(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(attention_bias=False))
    with torch.no_grad():
        supernet.gpt_neox.layers[0].attention.query_key_value.weight.zero_()
    for subnet in (SHALLOW, SubnetConfig(20, 3, 2, 20)):
        assert math.isfinite(heal(supernet, subnet, text[0]).healing.perplexity_after)


@pytest.mark.slow
def test_student_of_a_student_is_healed(supernet, text, uneven_subnet, tmp_path):
    calibration, other = text
    student = heal(supernet, uneven_subnet, calibration)
    subnet = SubnetConfig(20, [0, 1], [1, 3], [30, 20])
    again, plain = heal(student, subnet, calibration), extract_subnet(student, subnet)
    assert again.healing.is_healed
    assert perplexity_of(again, other) < perplexity_of(plain, other)
    student.save_pretrained(tmp_path)
    assert_same_weights(heal(tmp_path, subnet, calibration), again, FITTED_CLOSE)


@pytest.mark.slow
def test_vocabulary_of_fifty_thousand_is_healed(make_stock, make_supernet, sample_text):
    supernet = make_supernet(
        make_stock(vocab_size=50304, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    )
    student = heal(supernet, SubnetConfig(12, 2, 1, 16), sample_text(supernet, 30, length=8))
    assert student.lm_head.weight.shape == (50304, 12)
    assert student.healing.is_healed


# Types and formats


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_teacher_of_any_type_gives_a_healed_student_of_it(supernet, text, uneven_subnet, dtype):
    calibration, other = text
    teacher = copy.deepcopy(supernet).to(dtype)
    student = heal(teacher, uneven_subnet, calibration)
    assert {parameter.dtype for parameter in student.parameters()} == {dtype}
    assert student.healing.is_healed
    assert perplexity_of(student, other) < perplexity_of(extract_subnet(teacher, uneven_subnet), other) / 2
    exact = heal(supernet, uneven_subnet, calibration)
    assert perplexity_of(student, other) == pytest.approx(perplexity_of(exact, other), rel=0.03)


def test_type_asked_for_is_that_of_the_student(supernet, text, uneven_subnet):
    student = heal(supernet, uneven_subnet, text[0], dtype="bfloat16")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.healing.is_healed


@pytest.mark.slow
def test_every_format_holds_the_same_healed_student(supernet, text):
    students = {name: heal(supernet, STOCK, text[0], format=name) for name in ("auto", "stock", "whittle", "padded")}
    assert_same_weights(students["stock"], students["auto"])
    assert students["stock"].config.model_type == students["padded"].config.model_type == "gpt_neox"
    assert students["whittle"].config.model_type == "whittle_gpt_neox"
    with torch.no_grad():
        logits = [student(text[1]).logits for student in students.values()]
    for found in logits[1:]:
        torch.testing.assert_close(found, logits[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_padded_student_with_uneven_layers_computes_what_the_plain_one_does(supernet, text):
    subnet = SubnetConfig(24, [0, 2, 4], [[1, 3], 3, [2]], [40, [*range(3, 50, 2)], 64])
    padded, plain = (heal(supernet, subnet, text[0], format=name) for name in ("padded", "auto"))
    assert padded.healing.is_healed and padded.num_parameters() > plain.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(padded(text[1]).logits, plain(text[1]).logits, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one file", "shards", "new names"])
def test_student_from_disk_is_that_from_memory(supernet, text, uneven_subnet, tmp_path, name):
    supernet.save_pretrained(tmp_path, max_shard_size="20KB" if name == "shards" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (name == "shards")
    if name != "shards":
        tensors = load_file(tmp_path / "model.safetensors")
        assert "embed_out.weight" in tensors
        if name == "new names":
            tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
            save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    from_disk, from_memory = (heal(model, uneven_subnet, text[0]) for model in (tmp_path, supernet))
    assert from_disk.healing.is_healed and from_memory.healing.is_healed
    assert from_disk.healing.perplexity_after == pytest.approx(from_memory.healing.perplexity_after, rel=1e-4)
    assert_same_weights(from_disk, from_memory, FITTED_CLOSE)


@pytest.mark.slow
def test_student_of_every_architecture_from_disk_is_that_from_memory(each_supernet, each_text, draw_within, tmp_path):
    subnet = draw_within(each_supernet.config, 5)
    each_supernet.save_pretrained(tmp_path / "whole")
    from_disk, from_memory = (heal(model, subnet, each_text[0]) for model in (tmp_path / "whole", each_supernet))
    assert from_disk.healing.is_healed == from_memory.healing.is_healed
    with torch.no_grad():
        found, expected = (model(each_text[1]).logits for model in (from_disk, from_memory))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    from_memory.save_pretrained(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(loaded(each_text[1]).logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_dataset_and_tensor_and_default_settings_are_the_same(supernet, text):
    blocks = Dataset.from_dict({"input_ids": text[0].tolist()})
    default = extract_subnet(supernet, STOCK, heal=True, calibration_dataset=blocks, progress=False)
    assert_same_weights(default, heal(supernet, STOCK, text[0], batch_size=None))


# The folder


@pytest.mark.slow
def test_same_call_gives_the_same_bytes_and_the_folder_the_student(supernet, text, uneven_subnet, tmp_path):
    student = heal(supernet, uneven_subnet, text[0])
    for name in ("first", "second"):
        assert heal(supernet, uneven_subnet, text[0], tmp_path / name) == tmp_path / name
    files = [path.name for path in (tmp_path / "first").iterdir()]
    assert {"healing.json", "model.safetensors", "subnet.json"} <= set(files)
    same, different, failed = filecmp.cmpfiles(tmp_path / "first", tmp_path / "second", files, shallow=False)
    assert not different and not failed and len(same) == len(files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        torch.testing.assert_close(loaded(text[1]).logits, student(text[1]).logits, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "first" / "healing.json").read_text()) == json.loads(
        json.dumps(student.healing.to_dict())
    )


def test_report_lists_the_fits(supernet, text, uneven_subnet):
    report = heal(supernet, uneven_subnet, text[0], held_out=0.25, ridge=[1e-3, 1e-2]).healing
    assert (report.tokens, report.held_out_tokens) == (60 * 16, 20 * 16)
    layer = "gpt_neox.layers.{}."
    names = [layer + "attention.query_key_value", layer + "mlp.dense_h_to_4h"]
    names.append(f"{layer}attention.dense and {layer}mlp.dense_4h_to_h")
    expected = [name.replace("{}", str(index)) for index in (0, 2, 4) for name in names] + ["lm_head"]
    assert [fit["weights"] for fit in report.fits] == expected
    for fit in report.fits:
        assert fit["after"] <= fit["before"] and (fit["after"] < fit["before"]) == (fit["ridge"] in (1e-3, 1e-2))
    assert report.settings == {
        "basis": "principal", "inputs": True, "outputs": True, "head": True,
        "ridge": (1e-3, 1e-2), "held_out": 0.25, "batch_size": 128, "bf16": False,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "head"), [(32, False), (32, True), (12, True)])
def test_head_is_fitted_if_it_shall_be(supernet, text, size, head):
    fits = heal(supernet, SubnetConfig(size, [0, 3], 2, 20), text[0], head=head).healing.fits
    assert any(fit["weights"] == "lm_head" for fit in fits) == head


@pytest.mark.slow
@pytest.mark.parametrize("is_parallel", [True, False])
def test_layers_are_healed_on_what_the_healed_layers_before_them_compute(
    make_stock, make_supernet, sample_text, is_parallel
):
    supernet = make_supernet(make_stock(use_parallel_residual=is_parallel))
    blocks, names = sample_text(supernet, 60), ("attention.dense.weight", "mlp.dense_4h_to_h.weight")

    def last_layer(neurons):
        student = heal(supernet, SubnetConfig(32, [0, 3], 4, [neurons, 30]), blocks, ridge=[1e-2])
        assert student.healing.is_healed
        assert any(fit["ridge"] and "layers.3.mlp" in fit["weights"] for fit in student.healing.fits)
        return torch.cat([student.gpt_neox.layers[1].get_parameter(name).flatten() for name in names])

    assert (last_layer(10) - last_layer(60)).abs().max() > 1e-3


@pytest.mark.slow
def test_products_in_bfloat16_give_nearly_the_same_student(supernet, text, uneven_subnet):
    single, half = (heal(supernet, uneven_subnet, text[0], bf16=bf16) for bf16 in (False, True))
    assert not all(map(torch.equal, single.parameters(), half.parameters()))
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    found, expected = (perplexity_of(student, text[1]) for student in (half, single))
    assert half.healing.is_healed and found == pytest.approx(expected, rel=0.05)


def test_student_that_is_not_healed_has_no_report(supernet, uneven_subnet, tmp_path):
    assert extract_subnet(supernet, uneven_subnet).healing is None
    extract_subnet(supernet, uneven_subnet, tmp_path / "student")
    assert not (tmp_path / "student" / "healing.json").exists()


# Nothing else changes


@pytest.mark.parametrize("subnet", [STOCK, SubnetConfig(32, 5, 4, 64)], ids=["healed", "full"])
def test_super_network_and_random_numbers_stay_and_no_memory_is_shared(make_stock, make_supernet, text, subnet):
    supernet = make_supernet(make_stock(hidden_dropout=0.5)).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    config, generator = supernet.config.to_dict(), torch.get_rng_state()
    student = heal(supernet, subnet, text[0])
    assert torch.equal(torch.get_rng_state(), generator)
    assert supernet.config.to_dict() == config
    assert all(module.training for module in supernet.modules()) and not student.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in supernet.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    own, theirs = ({p.untyped_storage().data_ptr() for p in m.parameters()} for m in (student, supernet))
    assert not own & theirs
    assert all(parameter.requires_grad for parameter in student.parameters())
    student.train()(text[0][:2], labels=text[0][:2]).loss.backward()


# Memory


@pytest.mark.slow
def test_weights_of_the_teacher_are_read_from_disk_a_layer_at_a_time(make_stock, text, tmp_path, monkeypatch):
    stock = make_stock(num_hidden_layers=12)
    stock.save_pretrained(tmp_path)
    alive, most, read = [], 0, Checkpoint.__getitem__

    def counted(self, name):
        nonlocal alive, most
        values = read(self, name).numpy().copy()  # alive for as long as its tensor's memory is
        alive = [reference for reference in alive if reference() is not None] + [weakref.ref(values)]
        most = max(most, sum(reference().nbytes for reference in alive))
        return torch.from_numpy(values)

    monkeypatch.setattr(Checkpoint, "__getitem__", counted)
    heal(tmp_path, SubnetConfig(12, [0, 5, 11], 2, 20), text[0][:20])
    layer = sum(4 * p.numel() for p in stock.gpt_neox.layers[0].parameters())
    embedding = 4 * stock.lm_head.weight.numel()
    assert layer < most <= 2 * layer + embedding


@pytest.mark.slow
def test_hidden_states_are_in_files_and_no_tensor_holds_those_of_the_whole_text(supernet, text, monkeypatch):
    blocks, largest, call = text[0], 0, SingleLayer.recorded

    def counted(self, *arguments, **names):
        nonlocal largest
        if counted.calls % 97 == 0:
            tensors = [held for held in gc.get_objects() if type(held) is torch.Tensor and held.dtype == torch.float32]
            largest = max(largest, *(tensor.numel() for tensor in tensors if tensor.shape[:1] != (99,)))
        counted.calls += 1
        return call(self, *arguments, **names)

    counted.calls = 0
    monkeypatch.setattr(SingleLayer, "recorded", counted)
    gc.collect()
    heal(supernet, SubnetConfig(12, [0, 3], 2, 20), blocks, batch_size=8)
    assert counted.calls > 97
    assert 0 < largest < blocks.numel() * 32 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_are_read_as_they_were_written(dtype):
    values, file = torch.randn(7, 3, 5), HiddenStatesFile((7, 3, 5), CPU, dtype)
    for blocks in (range(3, 7), range(3)):
        file.write(blocks, values[blocks.start : blocks.stop])
    file.write(range(1, 2), values[4:5].transpose(1, 2).contiguous().transpose(1, 2))
    expected = values.to(dtype).float()
    expected[1] = expected[4]
    assert torch.equal(file.read(range(7)), expected) and torch.equal(file.read(range(2, 4)), expected[2:4])
    file.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_files_are_closed(supernet, text):
    heal(supernet, STOCK, text[0][:4])
    with pytest.raises(HealingError):
        heal(broken(supernet), STOCK, text[0][:4])
    gc.collect()


@pytest.mark.parametrize(("blocks", "share", "number"), [(2, 0.2, 1), (10, 0.2, 2), (10, 0.99, 9), (7, 0.01, 1)])
def test_blocks_are_held_out_over_the_whole_text(blocks, share, number):
    ids = torch.arange(blocks)[:, None]
    fitted, held_out = split_blocks(ids, share)
    assert len(held_out) == number and len(fitted) + number == blocks
    assert sorted([*fitted[:, 0].tolist(), *held_out[:, 0].tolist()]) == list(range(blocks))
    assert abs(held_out.double().mean() - (blocks - 1) / 2) <= 1


# Errors


def broken(supernet, name="gpt_neox.layers.3.mlp.dense_4h_to_h.weight", value=math.nan):
    model = copy.deepcopy(supernet)
    with torch.no_grad():
        model.state_dict()[name].flatten()[1] = value
    return model


@pytest.mark.parametrize("basis", ["principal", "channels"])
@pytest.mark.parametrize(
    ("name", "layer", "value"),
    [
        ("layers.3.mlp.dense_4h_to_h.weight", 3, math.nan),  # of a layer that is left out
        ("layers.0.input_layernorm.bias", 0, 3e38),
    ],
)
def test_values_that_are_not_finite_are_an_error_that_names_the_layer(supernet, text, basis, name, layer, value):
    message = (
        rf"the hidden states of the teacher contain NaN or Inf after layer {layer}; use a checkpoint whose weights"
    )
    model = broken(supernet, f"gpt_neox.{name}", value)
    with pytest.raises(HealingError, match=message):
        heal(model, STOCK, text[0], basis=basis)


def test_healing_without_text_is_an_error(supernet):
    with pytest.raises(DataError, match="healing needs text: give blocks of tokens as calibration_dataset"):
        extract_subnet(supernet, STOCK, heal=True)


def test_healing_on_one_block_is_an_error(supernet, text):
    message = "healing fits to some blocks of text and is judged on others, got 1; give 2 or more"
    with pytest.raises(DataError, match=message):
        heal(supernet, STOCK, text[0][:1])


def test_text_of_another_vocabulary_is_an_error(supernet, tmp_path):
    message = "the text has token ids from 1 to 99, the model's vocabulary has 99 entries"
    with pytest.raises(VocabularyError, match=message):
        heal(supernet, STOCK, torch.tensor([[1, 99], [2, 3]]), tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"basis": "random"}, "basis must be one of principal, channels, got 'random'"),
        ({"ridge": ()}, r"ridge must have positive numbers, got ()"),
        ({"ridge": (0.1, 0)}, "ridge must have positive numbers, got (0.1, 0)"),
        ({"ridge": [math.inf]}, "ridge must have positive numbers, got (inf,)"),
        ({"ridge": [math.nan]}, "ridge must have positive numbers, got (nan,)"),
        ({"held_out": 0}, "held_out must lie between 0 and 1, got 0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_an_error(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        HealingConfig(**values)
