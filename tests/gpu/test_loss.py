"""The fused distillation loss on the device against the naive one, in value and gradient."""

import pytest
import torch

from .comparing import DEVICE, assert_near
from .inner import (
    DIVERGENCES,
    IGNORED,
    DenseTargets,
    Head,
    LossWeights,
    SparseTargets,
    fused_distillation_loss,
    naive_distillation_loss,
)

pytestmark = pytest.mark.gpu
ROWS, ENTRIES, CHANNELS, OF_TEACHER = 37, 301, 24, 40
MODES = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float32 under bfloat16": (torch.float32, torch.bfloat16),
    "float32 under float16": (torch.float32, torch.float16),
}
"""Types of hidden states and matrices, and of autocast."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def draw(dtype, of_teacher=ENTRIES, bias=True):
    """Hidden states, matrix and bias of a student and of a teacher, and labels, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    sizes = [
        (ROWS, CHANNELS),
        (ENTRIES, CHANNELS),
        (ENTRIES,),
        (ROWS, OF_TEACHER),
        (of_teacher, OF_TEACHER),
        (of_teacher,),
    ]
    parts = [0.4 * torch.randn(*size, generator=generator) for size in sizes]
    labels = torch.randint(min(ENTRIES, of_teacher), (ROWS,), generator=generator)
    labels[[0, 5, 6, 36]] = IGNORED
    parts = [part.to(dtype) for part in parts]
    if not bias:
        parts[2] = parts[5] = None
    return parts, labels


def placed(parts, device, dtype=None):
    return [None if part is None else part.to(device, dtype).requires_grad_() for part in parts]


def value_and_gradients(total, leaves):
    leaves = [leaf for leaf in leaves if leaf is not None]
    names = ("states", "matrix", "bias")[: len(leaves)]
    return {"value": total, **dict(zip(names, torch.autograd.grad(total, leaves), strict=True))}


def naive(parts, labels, weights):
    """The naive loss on the CPU in double precision."""
    student, teacher = placed(parts[:3], "cpu", torch.float64), placed(parts[3:], "cpu", torch.float64)
    own, others = (states @ matrix.T + (0 if bias is None else bias) for states, matrix, bias in (student, teacher))
    missing = own.shape[1] - others.shape[1]
    others = torch.nn.functional.pad(others, (0, max(0, missing)), value=-1e4)[:, : own.shape[1]].detach()
    return value_and_gradients(naive_distillation_loss(own, others, labels, weights).total, student)


def fused(parts, labels, weights, autocast=None, chunk_size=8):
    student, teacher = placed(parts[:3], DEVICE), placed(parts[3:], DEVICE)
    targets = DenseTargets(teacher[0].detach(), Head(*(None if x is None else x.detach() for x in teacher[1:])))
    with torch.autocast(DEVICE.type, autocast, enabled=autocast is not None):
        loss = fused_distillation_loss(student[0], Head(*student[1:]), targets, labels.to(DEVICE), weights, chunk_size)
    assert loss.total.device == DEVICE and loss.rows == (labels != IGNORED).sum()
    return value_and_gradients(loss.total, student)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_is_the_naive_one(divergence, mode):
    dtype, autocast = MODES[mode]
    parts, labels = draw(dtype)
    weights = LossWeights(0.3, 0.6, 1.5, divergence)
    found = fused(parts, labels, weights, autocast)
    assert all(found[name].dtype == dtype for name in ("states", "matrix", "bias"))
    assert_near(found, naive(parts, labels, weights), TOLERANCE[autocast or dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("of_teacher", [ENTRIES + 19, ENTRIES - 19], ids=["teacher's larger", "teacher's smaller"])
@pytest.mark.parametrize("chunk_size", [1, 1024])
def test_padded_vocabulary_without_bias(of_teacher, mode, chunk_size):
    dtype, autocast = MODES[mode]
    parts, labels = draw(dtype, of_teacher, bias=False)
    found = fused(parts, labels, LossWeights(), autocast, chunk_size)
    assert_near(found, naive(parts, labels, LossWeights()), TOLERANCE[autocast or dtype])


@pytest.mark.parametrize("tail", [True, False], ids=["with tail", "without"])
def test_entries_of_a_store_give_what_they_give_on_the_cpu(tail):
    (states, matrix, bias, *_), labels = draw(torch.float32)
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(ROWS, ENTRIES, generator=generator).topk(9).indices
    probabilities = torch.rand(ROWS, 9, generator=generator).softmax(-1) * (0.8 if tail else 1)

    def on(device):
        student = placed((states, matrix, bias), device)
        targets = SparseTargets(ids.to(device), probabilities.to(device), tail)
        loss = fused_distillation_loss(student[0], Head(*student[1:]), targets, labels.to(device), None, 8)
        return value_and_gradients(loss.total, student)

    assert_near(on(DEVICE), on(torch.device("cpu")), 1e-4)


def test_scaled_loss_under_float16_keeps_small_gradients():
    """A scaler multiplies the loss after its gradients are made, so small ones must not be flushed to 0 before."""
    parts, labels = draw(torch.float32)
    expected = naive(parts, labels, LossWeights())["matrix"]
    found = fused(parts, labels, LossWeights(), torch.float16)["matrix"]
    small = expected.abs() < expected.abs().median() / 10
    assert_near(found.cpu()[small], expected[small], 0.1)


def test_rows_without_a_label_give_no_loss():
    parts, labels = draw(torch.float32)
    found = fused(parts, torch.full_like(labels, IGNORED), LossWeights())
    assert all(part.abs().max() == 0 for part in found.values())
