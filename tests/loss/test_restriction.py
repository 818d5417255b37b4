"""Targets restricted to a part of the teacher's vocabulary, against the formula on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from hf_whittle.loss.divergences import DIVERGENCES, IGNORED, LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, Head, Restriction

ROWS, OURS, THEIRS, CHANNELS = 9, 5, 11, 4
KEPT = torch.tensor([1, 2, 5, 7, 10])
DROPPED, RECEIVERS = torch.tensor([0, 3, 4, 8, 9]), torch.tensor([2, 0, 2, 4, 0])  # entry 6 belongs to no token
WAYS = {"first_piece": Restriction(KEPT, DROPPED, RECEIVERS), "renormalized": Restriction(KEPT)}


def tensors(scale=1.0):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    labels = torch.randint(OURS, (ROWS,), generator=generator)
    labels[3] = IGNORED
    student = [
        draw(ROWS, CHANNELS).requires_grad_(),
        draw(OURS, CHANNELS).requires_grad_(),
        draw(OURS).requires_grad_(),
    ]
    return student, [draw(ROWS, 6), draw(THEIRS, 6), draw(THEIRS)], labels


def by_the_formula(logits, way):
    """Logarithms of the restricted probabilities, entry by entry."""
    p = logits.softmax(-1)
    sums = [p[:, entry].clone() for entry in KEPT.tolist()]
    if way == "first_piece":
        for entry, receiver in zip(DROPPED.tolist(), RECEIVERS.tolist(), strict=True):
            sums[receiver] = sums[receiver] + p[:, entry]
    found = torch.stack(sums, -1)
    return (found / found.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("way", WAYS)
def test_value_and_gradient_are_those_of_the_formula(way, divergence, has_head):
    student, (states, weight, bias), labels = tensors()
    logits = states @ weight.T + bias
    weights = LossWeights(0.3, 0.7, 0.8, divergence)
    expected = naive_distillation_loss(
        student[0] @ student[1].T + student[2], by_the_formula(logits, way), labels, weights
    )
    targets = (DenseTargets(states, Head(weight, bias)) if has_head else DenseTargets(logits)).restricted(WAYS[way])
    loss = fused_distillation_loss(student[0], Head(*student[1:]), targets, labels, weights, chunk_size=4)
    assert divergence in DIVERGENCES
    for name in ("total", "cross_entropy", "divergence"):
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    right = torch.autograd.grad(expected.total, student)
    for own, other in zip(torch.autograd.grad(loss.total, student), right, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_probabilities_sum_to_one_and_an_entry_without_a_token_has_no_part_in_them(way):
    _, (states, weight, bias), _ = tensors()
    found = []
    for extra in (0.0, 50.0):
        bias = bias.clone()
        bias[6] += extra
        targets = DenseTargets(states, Head(weight, bias)).restricted(WAYS[way])
        found.append(F.log_softmax(targets.logits(torch.arange(ROWS), OURS), -1))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0].exp().sum(-1), torch.ones(ROWS, dtype=torch.float64))


def test_all_entries_kept_in_another_order_are_all_entries_in_that_order():
    _, (states, weight, bias), _ = tensors()
    order = torch.tensor([3, 0, 10, 4, 5, 9, 8, 1, 2, 7, 6])
    targets = DenseTargets(states, Head(weight, bias))
    rows = torch.arange(ROWS)
    torch.testing.assert_close(
        targets.restricted(Restriction(order)).logits(rows, THEIRS), targets.logits(rows, THEIRS)[:, order]
    )


def test_entries_of_hardly_any_probability_stay_finite():
    """Logarithms of probabilities beyond single precision are those of the entry itself."""
    logits = torch.full((1, THEIRS), -200.0)
    logits[0, 3] = 100.0
    found = Restriction(KEPT, DROPPED, RECEIVERS)(logits)
    assert found.isfinite().all() and found[0, 0] == 100.0 and found[0, 1] == -200.0


def test_more_entries_of_the_student_are_padding():
    _, (states, weight, bias), _ = tensors()
    targets = DenseTargets(states, Head(weight, bias)).restricted(WAYS["first_piece"])
    logits = targets.logits(torch.arange(ROWS), OURS + 2, 0.5)
    assert logits.shape == (ROWS, OURS + 2) and (logits.softmax(-1)[:, OURS:] == 0).all()
    torch.testing.assert_close(logits[:, :OURS], targets.logits(torch.arange(ROWS), OURS) / 0.5)


def test_whole_logits_are_never_held():
    """The teacher's logits are made for as many rows as the student's are."""
    rows, seen = 64, []
    states, weight = torch.randn(rows, 4), torch.randn(THEIRS, 4)

    class Watched(Restriction):
        def __call__(self, logits):
            seen.append(len(logits))
            return super().__call__(logits)

        def to(self, device):
            return self

    targets = DenseTargets(states, Head(weight)).restricted(Watched(KEPT, DROPPED, RECEIVERS))
    head = Head(torch.randn(OURS, 3, requires_grad=True))
    fused_distillation_loss(torch.randn(rows, 3), head, targets, torch.zeros(rows, dtype=torch.long), chunk_size=16)
    assert seen == [16] * 4
