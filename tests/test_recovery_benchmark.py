"""Rivals in the recovery benchmark: each against the formula of its paper, on tiny models."""

from dataclasses import replace

import pytest
import torch
from benchmarks.ranking import toy
from benchmarks.recovery.passes import batches, layers_of, module_of, writers
from benchmarks.recovery.rivals import (
    BOTH,
    CUT_CHANNELS,
    DEPTH,
    KINDS,
    RIVALS,
    WIDTH,
    Cut,
    flap,
    ghosted_layers,
    grail,
    linear_patch,
    replaceme,
    slicegpt,
)
from benchmarks.recovery.students import Chooser, angular_distances, score
from benchmarks.recovery.texts import demo_case
from torch.nn import functional as F

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import CHANNELS, NEURONS
from hf_whittle.cost import num_parameters

MODELS = {
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "parallel": {},
    "sequential": {"use_parallel_residual": False},
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def teacher(request, make_stock):
    return make_stock(**request.param).eval()


@pytest.fixture(scope="module")
def text():
    return torch.randint(99, (40, 16), generator=torch.Generator().manual_seed(0))


def logits(model, text):
    with torch.no_grad():
        return model(text[:4], use_cache=False).logits


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def narrow(teacher):
    """A cut that keeps every other neuron of every layer."""
    full = SubnetConfig.full(teacher.config)
    neurons = [list(range(0, 64, 2))] * len(full.layers)
    return full.replaced({NEURONS: neurons})


@pytest.mark.slow_after(12)
@pytest.mark.parametrize("name", [name for name in RIVALS if "ours" not in name])
def test_an_uncut_model_stays_as_it_is(teacher, text, name):
    cut = Cut(teacher, SubnetConfig.full(teacher.config), text)
    expected = logits(teacher, text)
    recovered = slicegpt.slice_model(cut, 32, slices_head=True) if "equal" in name else RIVALS[name].recover(cut)
    assert (logits(recovered, text) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_flap_keeps_the_mean_output(teacher, text):
    cut = Cut(teacher, narrow(teacher), text)
    student, writer = RIVALS["flap"].recover(cut), writers(teacher.config)[-1]
    whole, own = module_of(teacher, writer, 0), module_of(student, writer, 0)
    mean = flap.mean_inputs(cut, {"mlp": whole})["mlp"]
    torch.testing.assert_close(F.linear(mean[::2], own.weight, own.bias), F.linear(mean, whole.weight, whole.bias))
    assert count(student) == num_parameters(teacher.config, cut.subnet) + sum(
        32 for weight in writers(teacher.config) for _ in range(5) if module_of(teacher, weight, 0).bias is None
    )


def test_grail_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    features[:, 6:] += features[:, :6]
    kept = torch.tensor([0, 1, 2, 5, 9])
    expected = torch.linalg.lstsq(features[:, kept], features).solution.T
    found = grail.reconstruction(features.T @ features, kept, ridge=0.0)
    torch.testing.assert_close(found, expected)
    own = features[:, kept]
    strength = 0.1 * (own.T @ own).diagonal().mean()
    stacked = torch.cat([own, strength.sqrt() * torch.eye(5, dtype=torch.float64)])
    targets = torch.cat([features, torch.zeros(5, 12, dtype=torch.float64)])
    ridge = torch.linalg.lstsq(stacked, targets).solution.T
    torch.testing.assert_close(grail.reconstruction(features.T @ features, kept, ridge=0.1), ridge)


def test_grail_brings_the_first_layer_nearer(teacher, text):
    cut = Cut(teacher, narrow(teacher), text)
    writer = writers(teacher.config)[-1]
    errors = {}
    for name in ("sliced", "grail"):
        own = module_of(RIVALS[name].recover(cut), writer, 0)
        whole = module_of(teacher, writer, 0)
        errors[name] = sum(
            (F.linear(seen["mlp"].inputs[..., ::2], own.weight, own.bias) - seen["mlp"].outputs).square().sum().item()
            for seen in batches(teacher, text, {"mlp": whole})
        )
    assert errors["grail"] < errors["sliced"]


@pytest.fixture
def shallow(teacher, text):
    """A cut without layers 2 and 3."""
    return Cut(teacher, SubnetConfig.full(teacher.config).with_layers([0, 1, 4]), text)


def hidden(model, text, layer):
    """All inputs of a layer, `(tokens, channels)`."""
    return torch.cat(
        [seen["layer"].inputs for seen in batches(model, text, {"layer": layers_of(model)[layer]})]
    ).flatten(0, 1)


def test_ghosted_layers_are_least_squares(shallow, text):
    before, after = (hidden(shallow.teacher, text, layer).double() for layer in (2, 4))
    expected = torch.linalg.lstsq(before, after).solution.float()
    torch.testing.assert_close(ghosted_layers.operator(shallow, (2, 4)), expected, atol=1e-3, rtol=1e-3)
    student = RIVALS["ghosted_layers"].recover(shallow)
    torch.testing.assert_close(hidden(student, text, 2), (before @ expected.double()).float(), atol=1e-2, rtol=1e-3)
    assert count(student) == num_parameters(shallow.teacher.config, shallow.subnet) + 32 * 32


def test_replaceme_is_least_squares_and_adds_nothing(shallow, text):
    mlp = module_of(shallow.teacher, writers(shallow.teacher.config)[-1], 1)
    written = (
        torch.cat([seen["mlp"].outputs for seen in batches(shallow.teacher, text, {"mlp": mlp})]).flatten(0, 1).double()
    )
    before, after = (hidden(shallow.teacher, text, layer).double() for layer in (2, 4))
    expected = torch.linalg.lstsq(written, after - before + written).solution
    torch.testing.assert_close(replaceme.estimate(shallow, (2, 4)), expected, atol=1e-3, rtol=1e-3)
    student = RIVALS["replaceme"].recover(shallow)
    reached = (before - written + written @ expected).float()
    torch.testing.assert_close(hidden(student, text, 2), reached, atol=1e-2, rtol=1e-3)
    assert count(student) == num_parameters(shallow.teacher.config, shallow.subnet)


def test_robust_fits_leave_massive_tokens_out(shallow, text):
    states = torch.ones(1, 7, 3)
    states[0, 4] = 50.0
    robust = replace(shallow, is_robust=True)
    assert [len(part) for part in robust.tokens(states, torch.ones(1, 7, 2))] == [6, 6]
    assert len(shallow.tokens(states)[0]) == 7
    assert RIVALS["ghosted_layers, robust"].is_robust
    assert not RIVALS["ghosted_layers"].is_robust


@pytest.mark.parametrize("size", [1, 2, 4, 12, 32, 128, 576])
def test_hadamard_matrices_are_orthonormal(size):
    matrix = linear_patch.hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


def test_unknown_hadamard_matrix_is_an_error():
    with pytest.raises(ValueError, match="no Hadamard matrix of size 3"):
        linear_patch.hadamard(6)


def test_linear_patch_is_symmetric_and_scales_back(shallow, text):
    """Where layers that are removed would double hidden states, so does the patch."""
    student = RIVALS["linear_patch"].recover(shallow)
    patch = layers_of(student)[1].patch.weight
    torch.testing.assert_close(patch, patch.T)
    basis = linear_patch.hadamard(32)
    before, after = (hidden(shallow.teacher, text, layer).view(40, 16, 32) @ basis for layer in (2, 4))
    ratios = (after.abs().mean(1) / before.abs().mean(1)).mean(0)
    torch.testing.assert_close((basis.T @ patch @ basis).diagonal(), ratios, atol=1e-4, rtol=1e-4)


def test_a_gap_without_a_layer_before_it_is_an_error(teacher, text):
    cut = Cut(teacher, SubnetConfig.full(teacher.config).with_layers([2, 3, 4]), text)
    with pytest.raises(ValueError, match="layers 0 to 1 are removed and no layer"):
        RIVALS["ghosted_layers"].recover(cut)


def test_slicegpt_deletes_the_smallest_components(teacher, text):
    subnet = SubnetConfig.full(teacher.config).replaced({CHANNELS: 24})
    cut = Cut(teacher, subnet, text)
    same, equal = slicegpt.recover(cut), slicegpt.recover_at_size(cut)
    assert count(equal) <= num_parameters(teacher.config, subnet) < count(same)
    assert count(equal) == slicegpt.parameters(teacher.config, equal.get_input_embeddings().weight.shape[1])
    assert torch.isfinite(logits(equal, text)).all()
    more = slicegpt.slice_model(cut, 31, slices_head=True)
    expected = logits(teacher, text)
    assert (logits(more, text) - expected).norm() < (logits(equal, text) - expected).norm()


@pytest.mark.parametrize("criterion", ["importance", "magnitude"])
def test_students_have_the_size_that_is_asked_for(teacher, text, criterion, tmp_path):
    distances = angular_distances(teacher, text) if criterion == "importance" else None
    choose = Chooser(teacher.config, score(teacher, text, criterion, tmp_path), distances)
    whole = num_parameters(teacher.config)
    for kind in (WIDTH, BOTH, CUT_CHANNELS):
        share = num_parameters(teacher.config, choose(kind, 0.3)) / whole
        assert 0.66 < share <= 0.7
    subnet = choose(DEPTH, 0.3)
    removed = sorted(set(range(5)) - set(subnet.layers))
    assert set(KINDS) == {WIDTH, BOTH, CUT_CHANNELS, DEPTH}
    if criterion == "importance":
        assert removed == list(range(removed[0], removed[0] + len(removed)))
        assert 0 in subnet.layers


@pytest.mark.slow
def test_the_demo_is_a_case_whose_test_text_is_not_trained_on():
    case, material = demo_case(), toy.load("wide")
    assert case.facts["test_tokens"] >= case.windows.numel() > 0
    blocks = {tuple(block) for block in case.calibration.tolist()}
    assert blocks.isdisjoint(map(tuple, case.windows.tolist()))
    assert len(material.train) == toy.TRAIN_BLOCKS and material.text_sha256
