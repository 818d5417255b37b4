"""The fused loss against its formula written out here, the naive loss, and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hf_whittle.loss.divergences import DIVERGENCES, IGNORED, LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, Head, SparseTargets

ROWS, VOCABULARY, CHANNELS, OF_TEACHER = 13, 7, 5, 6
WEIGHTS = [
    LossWeights(),
    LossWeights(1.0, 0.0, 1.0),
    LossWeights(0.0, 1.0, 2.5),
    LossWeights(0.7, 1.3, 0.4),
    *(LossWeights(0.3, 0.6, 1.5, name) for name in DIVERGENCES if name != "forward_kl"),
    LossWeights(0.3, 0.6, 1.5, "jensen_shannon", jsd_weight=0.1),
]


def tensors(dtype=torch.float32, vocabulary=VOCABULARY, of_teacher=VOCABULARY, seed=0):
    """Hidden states, output matrix and bias of a student and of a teacher, and labels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(ROWS, CHANNELS), (vocabulary, CHANNELS), (vocabulary,)]
    sizes += [(ROWS, OF_TEACHER), (of_teacher, OF_TEACHER), (of_teacher,)]
    drawn = [torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    labels = torch.randint(min(vocabulary, of_teacher), (ROWS,), generator=generator)
    labels[[0, 5, 6, 7, 8]] = IGNORED
    return *(part.requires_grad_() for part in drawn), labels


def fused(states, weight, bias, of_teacher, teacher_weight, teacher_bias, labels, weights=None, chunk_size=4):
    targets = DenseTargets(of_teacher, Head(teacher_weight, teacher_bias))
    return fused_distillation_loss(states, Head(weight, bias), targets, labels, weights, chunk_size)


def of_logits(student, teacher, labels, weights=None, chunk_size=4):
    return fused_distillation_loss(student, None, DenseTargets(teacher), labels, weights, chunk_size)


def logits_of(states, weight, bias):
    return states.double() @ weight.double().T + bias.double()


def by_the_formula(student, teacher, labels, weights):
    """`alpha * CE + beta * T**2 * D` row by row, in double precision."""
    cross_entropy = divergence = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        if label != IGNORED:
            own = student[row].double()
            cross_entropy = cross_entropy - torch.log(own.exp()[label] / own.exp().sum())
            soft = [torch.log_softmax(part[row].double() / weights.temperature, -1) for part in (student, teacher)]
            divergence = divergence + weights.function(*(part[None] for part in soft))[0]
    return weights.alpha * cross_entropy + weights.beta * weights.temperature**2 * divergence, cross_entropy, divergence


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 1000])
def test_value_and_gradients_are_those_of_the_formula(weights, chunk_size):
    *parts, labels = tensors()
    loss = fused(*parts, labels, weights, chunk_size)
    total, cross_entropy, divergence = by_the_formula(logits_of(*parts[:3]), logits_of(*parts[3:]), labels, weights)
    torch.testing.assert_close(loss.total.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.cross_entropy.double(), cross_entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.divergence.double(), divergence, rtol=1e-5, atol=1e-5)
    assert loss.rows == 8
    got = torch.autograd.grad(loss.total, parts[:3])
    for gradient, expected in zip(got, torch.autograd.grad(total, parts[:3]), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_naive_and_chunked_logits_are_the_formula_too(weights):
    *parts, labels = tensors()
    student, teacher = (logits_of(*some).float().detach() for some in (parts[:3], parts[3:]))
    student.requires_grad_()
    expected = by_the_formula(student, teacher, labels, weights)[0]
    for loss in (
        naive_distillation_loss(student, teacher, labels, weights),
        of_logits(student, teacher, labels, weights),
    ):
        torch.testing.assert_close(loss.total.double(), expected, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(loss.total, student)
        (right,) = torch.autograd.grad(expected, student, retain_graph=True)
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_gradient_is_that_of_finite_differences(weights):
    *parts, labels = tensors(torch.float64)
    assert torch.autograd.gradcheck(lambda *student: fused(*student, *parts[3:], labels, weights).total, parts[:3])


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
@pytest.mark.parametrize("has_head", [True, False])
def test_without_targets_it_is_cross_entropy(alpha, chunk_size, has_head):
    states, weight, bias, *_, labels = tensors()
    given = (states, Head(weight, bias)) if has_head else (logits_of(states, weight, bias).float(), None)
    loss = fused_distillation_loss(*given, None, labels, LossWeights(alpha, 0.8), chunk_size)
    parts = (states, weight, bias)
    expected = F.cross_entropy(logits_of(*parts), labels, ignore_index=IGNORED, reduction="sum")
    assert loss.total.item() == pytest.approx(alpha * expected.item(), rel=1e-6)
    assert loss.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.divergence == 0 and loss.rows == (labels != IGNORED).sum()
    found = torch.autograd.grad(loss.total, parts)
    for own, other in zip(found, torch.autograd.grad(alpha * expected, parts), strict=True):
        torch.testing.assert_close(own, other.to(own), rtol=1e-5, atol=1e-6)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_targets", [True, False])
def test_without_gradients_no_product_is_made_for_them(has_targets):
    *parts, labels = tensors()
    targets = DenseTargets(parts[3], Head(*parts[4:])) if has_targets else None
    with torch.no_grad(), Products() as products:
        fused_distillation_loss(parts[0], Head(*parts[1:3]), targets, labels, LossWeights(), chunk_size=1000)
    assert products.number == 1 + has_targets  # for the logits of each model


@pytest.mark.parametrize("tail, repeated", [(True, False), (False, False), (False, True)])
def test_gradient_of_entries_is_that_of_finite_differences(tail, repeated):
    *parts, labels = tensors(torch.float64)
    targets = entries(parts[3:], 3, tail, repeated)

    def total(*student):
        return fused_distillation_loss(student[0], Head(*student[1:]), targets, labels, chunk_size=4).total

    assert torch.autograd.gradcheck(total, parts[:3])


def entries(teacher, count, tail, repeated=False, temperature=0.9):
    probabilities = torch.softmax(logits_of(*teacher).detach() / temperature, -1)
    values, ids = probabilities.topk(count)
    if repeated:
        ids = ids[:, [0, 1, 0]]
        values = torch.full(ids.shape, 1 / ids.shape[1], dtype=torch.float64)
    elif not tail:
        values = values / values.sum(-1, keepdim=True)
    return SparseTargets(ids, values, tail)


def test_all_entries_are_the_whole_distribution():
    *parts, labels = tensors()
    whole = fused(*parts, labels)
    for tail in (True, False):
        targets = entries(parts[3:], VOCABULARY, tail)
        some = fused_distillation_loss(parts[0], Head(*parts[1:3]), targets, labels, chunk_size=4)
        torch.testing.assert_close(some.divergence, whole.divergence, rtol=1e-4, atol=1e-4)
        pairs = zip(
            *(torch.autograd.grad(loss.total, parts[:3], retain_graph=True) for loss in (some, whole)), strict=True
        )
        for gradient, expected in pairs:
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_entries_with_the_rest_as_one_are_kl_of_merged_distributions(count):
    *parts, labels = tensors(torch.float64)
    targets = entries(parts[3:], count, tail=True)
    loss = fused_distillation_loss(parts[0], Head(*parts[1:3]), targets, labels)
    q = torch.softmax(logits_of(*parts[:3]) / 0.9, -1).gather(1, targets.ids)
    merged = [torch.cat([part, 1 - part.sum(-1, keepdim=True)], -1) for part in (q, targets.probabilities)]
    expected = (merged[1] * (merged[1] / merged[0]).log()).sum(-1)[labels != IGNORED].sum()
    torch.testing.assert_close(loss.divergence, expected)
    assert loss.divergence <= fused(*parts, labels).divergence * (1 + 1e-12)  # of two routes


@pytest.mark.slow
def test_samples_give_the_gradient_of_the_whole_distribution_on_average():
    *parts, labels = tensors(torch.float64)
    p = torch.softmax(logits_of(*parts[3:]).detach() / 0.9, -1)
    entropy = torch.special.entr(p).sum(-1)
    generator = torch.Generator().manual_seed(0)
    sums, values, rounds = torch.zeros(ROWS, CHANNELS, dtype=torch.float64), [], 3000
    for _ in range(rounds):
        ids = torch.multinomial(p, 12, replacement=True, generator=generator)
        targets = SparseTargets(ids, torch.full(ids.shape, 1 / 12, dtype=torch.float64), False, entropy)
        loss = fused_distillation_loss(parts[0], Head(*parts[1:3]), targets, labels)
        sums += torch.autograd.grad(loss.total, parts[0])[0]
        values.append(loss.divergence.item())
    whole = fused(*parts, labels)
    (expected,) = torch.autograd.grad(whole.total, parts[0])
    assert ((sums / rounds - expected).norm() / expected.norm()).item() < 0.02
    assert sum(values) / rounds == pytest.approx(whole.divergence.item(), rel=0.02)


@pytest.mark.parametrize("of_teacher", [5, 10])
def test_padded_vocabulary_of_either_side(of_teacher):
    """A teacher's larger vocabulary is truncated; entries it lacks have probability 0."""
    *parts, labels = tensors(of_teacher=of_teacher)
    loss = fused(*parts, labels)
    teacher = logits_of(*parts[3:])[:, :VOCABULARY]
    teacher = F.pad(teacher, (0, VOCABULARY - teacher.shape[1]), value=-1e4)
    expected = by_the_formula(logits_of(*parts[:3]), teacher, labels, LossWeights())
    torch.testing.assert_close(loss.total.double(), expected[0], rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(loss.total, parts[:3])
    for gradient, right in zip(got, torch.autograd.grad(expected[0], parts[:3]), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


def test_gradient_follows_what_comes_after_the_loss():
    *parts, labels = tensors()
    once = torch.autograd.grad(fused(*parts, labels).total, parts[:3])
    scaled = torch.autograd.grad(fused(*parts, labels).total / 8 * 3, parts[:3])
    for first, second in zip(once, scaled, strict=True):
        torch.testing.assert_close(second, first * 3 / 8)


def test_ignored_rows_get_no_gradient_whatever_they_hold():
    *parts, labels = tensors()
    expected = fused(*parts, labels).total
    with torch.no_grad():
        parts[0][labels == IGNORED], parts[3][labels == IGNORED] = torch.nan, torch.inf
    loss = fused(*parts, labels).total
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, parts[:3])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][labels == IGNORED].any()


def test_all_rows_ignored_is_zero_with_zero_gradient():
    *parts, labels = tensors()
    loss = fused(*parts, torch.full_like(labels, IGNORED)).total
    assert loss == 0 and not any(gradient.any() for gradient in torch.autograd.grad(loss, parts[:3]))


def test_frozen_output_matrix_gets_no_gradient():
    *parts, labels = tensors()
    for part in parts[1:3]:
        part.requires_grad_(False)
    fused(*parts, labels).total.backward()
    assert parts[0].grad is not None and parts[1].grad is None and parts[2].grad is None


def test_no_gradient_reaches_the_teacher():
    *parts, labels = tensors()
    fused(*parts, labels).total.backward()
    assert all(part.grad is None for part in parts[3:])


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_half_precision_multiplies_in_it_and_sums_in_single_precision(autocast):
    *parts, labels = tensors()
    parts = [part.detach().bfloat16().float() if autocast else part.detach().bfloat16() for part in parts]
    student = [part.requires_grad_() for part in parts[:3]]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = fused(*parts, labels)
    expected = by_the_formula(logits_of(*parts[:3]), logits_of(*parts[3:]), labels, LossWeights())[0]
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), expected, rtol=2e-2, atol=0)
    for gradient, right in zip(
        torch.autograd.grad(loss.total, student), torch.autograd.grad(expected, student), strict=True
    ):
        assert gradient.dtype == right.dtype
        torch.testing.assert_close(gradient, right, rtol=5e-2, atol=5e-2)


def test_evaluation_without_gradient_gives_the_same_value():
    *parts, labels = tensors()
    with torch.no_grad():
        value = fused(*parts, labels).total
    torch.testing.assert_close(value, fused(*parts, labels).total)


def test_inputs_are_left_as_they_are():
    *parts, labels = tensors()
    before = [part.detach().clone() for part in parts]
    fused(*parts, labels).total.backward()
    of_logits(parts[0], parts[3][:, :CHANNELS], labels % CHANNELS).total.backward()
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"hidden_states": torch.zeros(ROWS - 1, CHANNELS)},
            r"expected hidden states \(N, C\), targets and labels of N rows, got",
        ),
        ({"labels": torch.zeros(ROWS - 1).long()}, r"labels \(12,\)"),
        ({"head": Head(torch.zeros(VOCABULARY, 3))}, "hidden states have 5 channels, the output matrix reads 3"),
        ({"weights": LossWeights(divergence="l2")}, "l2 needs the teacher's whole distribution"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    *parts, labels = tensors()
    given = {
        "hidden_states": parts[0],
        "head": Head(*parts[1:3]),
        "targets": entries(parts[3:], 2, True),
        "labels": labels,
    }
    with pytest.raises(ValueError, match=message):
        fused_distillation_loss(**{**given, **change})
