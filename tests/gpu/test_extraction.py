"""Extraction and healing on the device, from memory and from files."""

import math

import pytest
import torch

from hf_whittle import GPTNeoXSuperNetForCausalLM, HealingConfig, extract_subnet

from .comparing import DEVICE, DTYPES, SUBNETS, assert_near, on_device
from .inner import cross_entropy

pytestmark = pytest.mark.gpu
SLICES = {name: subnet for name, subnet in SUBNETS.items() if subnet is not None}
HEALING = {
    "principal": HealingConfig(),
    "channels": HealingConfig(basis="channels"),
    "inputs alone": HealingConfig(basis="channels", outputs=False, head=False),
    "outputs alone": HealingConfig(basis="channels", inputs=False, head=False),
}


def bits(model):
    return {name: weight.cpu() for name, weight in model.state_dict().items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def perplexity(model, blocks):
    return math.exp(cross_entropy(model, blocks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subnet", SLICES.values(), ids=SLICES)
def test_student_has_the_bits_of_that_of_the_cpu(supernet, subnet, dtype):
    student = extract_subnet(on_device(supernet, DTYPES[dtype]), subnet)
    assert {weight.device for weight in student.state_dict().values()} == {DEVICE}
    assert_same_bits(bits(student), bits(extract_subnet(supernet, subnet, dtype=DTYPES[dtype])))


@pytest.mark.parametrize("subnet", SLICES.values(), ids=SLICES)
def test_from_files_it_has_the_bits_of_that_from_memory(saved, supernet, subnet, tmp_path):
    from_files = extract_subnet(saved, subnet, progress=False)
    written = extract_subnet(on_device(supernet), subnet, tmp_path / "student")
    loaded = type(from_files).from_pretrained(written).to(DEVICE)
    assert_same_bits(bits(loaded), bits(from_files))


@pytest.mark.parametrize("settings", HEALING.values(), ids=HEALING)
def test_healing_in_memory_is_that_of_the_cpu(supernet, text, settings):
    found, expected = (
        extract_subnet(model, SUBNETS["fine"], heal=settings, calibration_dataset=text[0], progress=False)
        for model in (on_device(supernet), supernet)
    )
    assert found.device == DEVICE and expected.healing.is_healed
    assert found.healing.perplexity_before == pytest.approx(expected.healing.perplexity_before, rel=1e-4)
    assert found.healing.perplexity_after == pytest.approx(expected.healing.perplexity_after, rel=1e-2)
    assert found.healing.perplexity_after < found.healing.perplexity_before
    assert perplexity(found, text[1]) == pytest.approx(perplexity(expected, text[1]), rel=1e-2)


def test_healing_from_files_is_that_in_memory(saved, supernet, text):
    settings = {"heal": True, "calibration_dataset": text[0], "progress": False}
    from_files, in_memory = (
        extract_subnet(source, SUBNETS["coarse"], **settings) for source in (saved, on_device(supernet))
    )
    assert perplexity(from_files.to(DEVICE), text[1]) == pytest.approx(perplexity(in_memory, text[1]), rel=1e-2)


def test_healing_in_bfloat16_is_near_that_in_single_precision(supernet, text):
    found, expected = (
        extract_subnet(model, SUBNETS["coarse"], heal=True, calibration_dataset=text[0], progress=False)
        for model in (on_device(supernet, torch.bfloat16), supernet)
    )
    assert found.dtype == torch.bfloat16 and found.device == DEVICE
    assert perplexity(found, text[1]) == pytest.approx(perplexity(expected, text[1]), rel=0.1)


def test_healing_does_not_depend_on_tf32(supernet, text, tf32):
    """Moments are sums over many tokens; TF32's three digits would spoil the regressions."""
    settings = {"heal": True, "calibration_dataset": text[0], "progress": False}
    expected = extract_subnet(supernet, SUBNETS["coarse"], **settings)
    with tf32():
        found = extract_subnet(on_device(supernet), SUBNETS["coarse"], **settings)
    assert perplexity(found, text[1]) == pytest.approx(perplexity(expected, text[1]), rel=2e-2)


def test_super_network_is_loaded_on_the_device(saved, supernet, text):
    model = GPTNeoXSuperNetForCausalLM.from_pretrained(saved, device_map={"": DEVICE})
    student = extract_subnet(model, SUBNETS["fine"])
    assert student.device == DEVICE
    assert_near(bits(student), bits(extract_subnet(supernet, SUBNETS["fine"])), 0.0)
