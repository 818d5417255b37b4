"""Divergences against independent formulas and their known bounds."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch.distributions import Categorical, kl_divergence

from hf_whittle.loss.divergences import DIVERGENCES, LossWeights, forward_kl, jensen_shannon

ROWS, VOCABULARY = 13, 7
BOUNDS = {
    "forward_kl": (0, math.inf),
    "reverse_kl": (0, math.inf),
    "symmetric_kl": (0, math.inf),
    "jensen_shannon": (0, math.log(2)),
    "total_variation": (0, 1),
    "cosine": (0, 1),
    "l1": (0, 2),
    "l2": (0, 2),
    "soft_cross_entropy": (0, math.inf),
}
FORMULAS = {  # of a student's and a teacher's probabilities, with numpy and scipy
    "forward_kl": lambda q, p: entropy(p, q),
    "reverse_kl": lambda q, p: entropy(q, p),
    "symmetric_kl": lambda q, p: (entropy(p, q) + entropy(q, p)) / 2,
    "jensen_shannon": lambda q, p: jensenshannon(p, q) ** 2,
    "total_variation": lambda q, p: np.maximum(p - q, 0).sum(),
    "cosine": lambda q, p: scipy_cosine(q, p),
    "l1": lambda q, p: np.abs(p - q).sum(),
    "l2": lambda q, p: np.dot(p - q, p - q),
    "soft_cross_entropy": lambda q, p: entropy(p) + entropy(p, q),
}


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(ROWS, VOCABULARY, generator=generator)).log_softmax(-1) for _ in range(2)]


def one_hot(index):
    return torch.full((1, VOCABULARY), -1e4).index_fill(1, torch.tensor([index]), 0.0)


def test_every_divergence_is_tested():
    assert BOUNDS.keys() == FORMULAS.keys() == DIVERGENCES.keys()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_is_its_formula(pair, name):
    values = DIVERGENCES[name](*pair)
    expected = [FORMULAS[name](q, p) for q, p in zip(*(part.exp().double().numpy() for part in pair), strict=True)]
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "soft_cross_entropy"])
def test_divergence_is_zero_of_equals_and_positive_of_others(pair, name):
    student, teacher = pair
    assert DIVERGENCES[name](teacher, teacher).abs().max() < 1e-6
    assert (DIVERGENCES[name](student, teacher) > 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_keeps_its_bounds_and_reaches_the_upper_one_of_opposites(pair, name):
    low, high = BOUNDS[name]
    values = DIVERGENCES[name](*pair)
    assert (values >= low).all() and (values <= high).all()
    opposite = DIVERGENCES[name](one_hot(0), one_hot(1)).item()
    assert opposite == pytest.approx(high, rel=1e-6) if math.isfinite(high) else opposite > 1e3


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
def test_generalized_jensen_shannon_is_the_entropy_of_the_mixture_less_those_of_its_parts(pair, weight):
    q, p = (part.exp().double().numpy() for part in pair)
    expected = (
        entropy(weight * p + (1 - weight) * q, axis=1) - weight * entropy(p, axis=1) - (1 - weight) * entropy(q, axis=1)
    )
    values = jensen_shannon(*pair, weight).double()
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    bound = entropy([weight, 1 - weight])
    assert jensen_shannon(one_hot(0), one_hot(1), weight).item() == pytest.approx(bound, rel=1e-5)


def test_forward_kl_equals_torch_distributions_and_kl_div(pair):
    student, teacher = pair
    divergence = forward_kl(student, teacher)
    by_distributions = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(divergence, by_distributions)
    torch.testing.assert_close(divergence, F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1))


def test_defaults_are_those_of_the_paper():
    weights = LossWeights()
    assert (weights.alpha, weights.beta, weights.temperature, weights.divergence) == (0.2, 0.8, 0.9, "forward_kl")
