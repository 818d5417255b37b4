"""The device of these tests, the subnets tried on it, and comparisons of its numbers with a reference."""

import copy

import pytest
import torch

from hf_whittle import SubnetConfig

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SUBNETS = {
    "full": None,
    "coarse": SubnetConfig(20, 3, 2, 40),
    "coarse layer-wise": SubnetConfig(20, (0, 2, 4), (1, 4, 2), (40, 64, 8)),
    "fine": SubnetConfig(
        (*range(20), 25, 31), (0, 2, 4), ((1, 3), 4, (2,)), ((40, 41), tuple(range(3, 50, 2)), tuple(range(9)))
    ),
}
"""Subnets of the tiny super-network; `None` is all of it."""
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")


def on_device(model, dtype=torch.float32):
    """A copy of a model on the device."""
    return copy.deepcopy(model).to(DEVICE, dtype)


def on_cpu(value):
    """A tensor, or a dictionary of them, on the CPU in double precision."""
    if isinstance(value, dict):
        return {name: on_cpu(part) for name, part in value.items()}
    return value.detach().cpu().double()


def relative_error(found, expected):
    """`|found - expected| / |expected|`, in double precision."""
    found, expected = on_cpu(found), on_cpu(expected)
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_near(found, expected, tolerance):
    """Tensors, or dictionaries of them, that differ by no more than `tolerance` relative to the expected one's norm."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        errors = {name: relative_error(found[name], expected[name]) for name in expected}
    else:
        assert found.shape == expected.shape
        errors = {"value": relative_error(found, expected)}
    assert all(error <= tolerance for error in errors.values()), f"relative errors above {tolerance}: {errors}"


def use_ieee():
    """Products of single precision numbers without TF32."""
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9
        torch.backends.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "none"  # that of the line above
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
