"""The chunked distillation loss against the formula, written out again here."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from hf_whittle.distillation.losses import (
    IGNORED,
    LossWeights,
    distillation_loss,
    forward_kl,
    naive_distillation_loss,
)

ROWS, VOCABULARY = 13, 7
WEIGHTS = [
    LossWeights(),
    LossWeights(1.0, 0.0, 1.0),
    LossWeights(0.0, 1.0, 2.5),
    LossWeights(0.7, 1.3, 0.4),
]


def by_the_formula(student, teacher, labels, weights):
    """`alpha * CE + beta * T**2 * KL(teacher || student)` row by row, from probabilities alone, in double precision."""
    cross_entropy = divergence = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        if label == IGNORED:
            continue
        hard = student[row].double()
        cross_entropy = cross_entropy - torch.log(hard.exp()[label] / hard.exp().sum())
        p = torch.exp(teacher[row].double() / weights.temperature)
        q = torch.exp(hard / weights.temperature)
        p, q = p / p.sum(), q / q.sum()
        divergence = divergence + (p * torch.log(p / q)).sum()
    total = weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence
    return total, cross_entropy, divergence


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(ROWS, VOCABULARY, generator=generator) for _ in range(2))
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    labels[[0, 5, 6, 7, 8]] = IGNORED
    return student, teacher, labels


def value_and_gradient(loss_of, student):
    student = student.detach().clone().requires_grad_()
    value = loss_of(student)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5, ROWS, 1000])
def test_chunked_equals_the_formula_in_value_and_gradient(batch, weights, chunk_size):
    student, teacher, labels = batch
    value, gradient = value_and_gradient(
        lambda logits: distillation_loss(logits, teacher, labels, weights, chunk_size).total, student
    )
    expected, expected_gradient = value_and_gradient(
        lambda logits: by_the_formula(logits, teacher, labels, weights)[0], student
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_chunked_equals_naive_in_parts(batch, weights):
    chunked = distillation_loss(*batch, weights, 3)
    for reference in (naive_distillation_loss(*batch, weights), by_the_formula(*batch, weights)):
        for got, expected in zip((chunked.total, chunked.cross_entropy, chunked.divergence), reference, strict=True):
            torch.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=1e-6)
    assert chunked.rows == 8


@pytest.mark.parametrize("chunk_size", [3, ROWS])
def test_gradient_is_that_of_finite_differences(batch, chunk_size):
    student, teacher, labels = batch
    _, gradient = value_and_gradient(
        lambda logits: distillation_loss(logits, teacher, labels, None, chunk_size).total, student
    )
    step, default = 1e-6, LossWeights()
    for row, column in [(0, 0), (1, 2), (3, 6), (12, 4)]:
        shifts = torch.zeros(ROWS, VOCABULARY, dtype=torch.float64)
        shifts[row, column] = step
        ahead, behind = (by_the_formula(student + sign * shifts, teacher, labels, default)[0] for sign in (1, -1))
        assert gradient[row, column].item() == pytest.approx(((ahead - behind) / (2 * step)).item(), abs=1e-5)


def test_gradient_follows_what_comes_after_the_loss(batch):
    student, teacher, labels = batch
    _, once = value_and_gradient(lambda logits: distillation_loss(logits, teacher, labels).total, student)
    _, scaled = value_and_gradient(lambda logits: distillation_loss(logits, teacher, labels).total / 8 * 3, student)
    torch.testing.assert_close(scaled, once * 3 / 8)


def test_ignored_rows_get_no_gradient_whatever_they_hold(batch):
    student, teacher, labels = batch
    student, teacher = student.clone(), teacher.clone()
    student[labels == IGNORED], teacher[labels == IGNORED] = 1e4, -1e4
    value, gradient = value_and_gradient(
        lambda logits: distillation_loss(logits, teacher, labels, None, 4).total, student
    )
    assert torch.equal(value, distillation_loss(*batch, None, 4).total)
    assert torch.equal(gradient[labels == IGNORED], torch.zeros(5, VOCABULARY))


def test_all_rows_ignored_is_zero_with_zero_gradient(batch):
    student, teacher, labels = batch
    nothing = torch.full_like(labels, IGNORED)
    value, gradient = value_and_gradient(lambda logits: distillation_loss(logits, teacher, nothing).total, student)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_bfloat16_logits_are_summed_in_single_precision(batch, chunk_size):
    student, teacher, labels = (part.bfloat16() if part.is_floating_point() else part for part in batch)
    value, gradient = value_and_gradient(
        lambda logits: distillation_loss(logits, teacher, labels, None, chunk_size).total, student
    )
    expected, expected_gradient = value_and_gradient(
        lambda logits: by_the_formula(logits, teacher, labels, LossWeights())[0], student
    )
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=8e-3, atol=1e-4)


def test_no_gradient_reaches_the_teacher(batch):
    student, teacher, labels = batch
    teacher = teacher.clone().requires_grad_()
    distillation_loss(student.clone().requires_grad_(), teacher, labels).total.backward()
    assert teacher.grad is None


def test_evaluation_without_gradient_gives_the_same_value(batch):
    with torch.no_grad():
        value = distillation_loss(*batch, None, 4).total
    assert value.item() == pytest.approx(by_the_formula(*batch, LossWeights())[0].item(), rel=1e-6)


def test_forward_kl_equals_torch_distributions_and_kl_div(batch):
    student, teacher = (part.log_softmax(-1) for part in batch[:2])
    divergence = forward_kl(student, teacher)
    by_distributions = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(divergence, by_distributions)
    torch.testing.assert_close(divergence, F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1))


def test_forward_kl_is_zero_of_equals_and_positive_of_others(batch):
    student, teacher = (part.log_softmax(-1) for part in batch[:2])
    assert torch.equal(forward_kl(teacher, teacher), torch.zeros(ROWS))
    assert (forward_kl(student, teacher) > 0).all()


def test_defaults_are_those_of_the_paper():
    assert LossWeights() == LossWeights(alpha=0.2, beta=0.8, temperature=0.9)


@pytest.mark.parametrize("teacher_shape, labels", [((ROWS, 5), ROWS), ((ROWS, VOCABULARY), ROWS - 1)])
def test_shapes_that_do_not_match_are_named(teacher_shape, labels):
    with pytest.raises(ValueError, match=r"expected student and teacher logits \(N, V\) and labels \(N,\), got"):
        distillation_loss(torch.zeros(ROWS, VOCABULARY), torch.zeros(teacher_shape), torch.zeros(labels).long())
