"""Ridge regression from moments, compared with least squares on the tokens themselves."""

import math

import numpy as np
import pytest
import torch

from hf_whittle.healing.regression import Moments, ridge_solution
from hf_whittle.healing.symmetric import SymmetricSums

TOKENS, FEATURES, TARGETS = 400, 7, 3
RIDGES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def tokens():
    """Features of very different scales, targets that depend on them, and a start."""
    x = draw(0, TOKENS, FEATURES) * torch.logspace(-2, 2, FEATURES, dtype=torch.float64) + 0.3
    return x, x @ draw(1, FEATURES, TARGETS) + 5 * draw(2, TOKENS, TARGETS), draw(3, TARGETS, FEATURES)


def least_squares(x, y, start, ridge):
    """Ridge regression by numpy's least squares, with the penalty as rows below the tokens."""
    x, y, start = (part.numpy() for part in (x, y, start))
    squares = (x**2).sum(0)
    penalty = np.sqrt(ridge) * np.diag(np.sqrt(squares + 1e-6 * squares.mean()))
    rows, targets = np.concatenate([x, penalty]), np.concatenate([y, penalty @ start.T])
    return torch.from_numpy(np.linalg.lstsq(rows, targets, rcond=None)[0].T)


def relative_error(x, y, weight):
    return ((y - x @ weight.T).square().sum() / y.square().sum()).item()


def solve(x, y, start, ridge):
    return ridge_solution(x.T @ x, y.T @ x, start, ridge)


def gather(parts, constant=False):
    moments = Moments(constant)
    for x, y, held_out in parts:
        moments.add(x, y, held_out)
    return moments


@pytest.mark.parametrize("ridge", RIDGES)
def test_solution_is_that_of_least_squares_on_the_tokens(tokens, ridge):
    torch.testing.assert_close(solve(*tokens, ridge), least_squares(*tokens, ridge), **CLOSE)


def test_solution_does_not_depend_on_the_scales_of_the_features(tokens):
    x, y, start = tokens
    scale = torch.logspace(0.5, -0.5, FEATURES, dtype=torch.float64)
    x = x / x.square().sum(0).sqrt()  # so that the same is added to all squares
    scaled = solve(x * scale, y, start / scale, 0.1) * scale
    torch.testing.assert_close(scaled, solve(x, y, start, 0.1), rtol=1e-3, atol=1e-3)


def test_solution_goes_from_least_squares_to_the_start_as_the_ridge_grows(tokens):
    x, y, start = tokens
    free = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(solve(*tokens, 1e-12), free, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(solve(*tokens, 1e12), start, rtol=1e-6, atol=1e-6)
    scale = x.square().sum(0).sqrt()
    distances = [((solve(*tokens, ridge) - start) * scale).norm().item() for ridge in RIDGES]
    assert distances == sorted(distances, reverse=True)


def test_start_that_is_the_solution_stays(tokens):
    x, _, start = tokens
    torch.testing.assert_close(solve(x, x @ start.T, start, 0.1), start, **CLOSE)


def test_feature_that_is_always_zero_keeps_its_start_and_leaves_the_others_alone(tokens):
    x, y, start = tokens
    x = x.index_fill(1, torch.tensor([2, 5]), 0.0)
    found = solve(x, y, start, 1e-3)
    torch.testing.assert_close(found[:, [2, 5]], start[:, [2, 5]], **CLOSE)
    torch.testing.assert_close(found, least_squares(x, y, start, 1e-3), **CLOSE)


@pytest.mark.parametrize("kind", ["copied feature", "fewer tokens than features", "one token"])
def test_moments_without_full_rank_have_a_solution_that_fits(tokens, kind):
    x, y, start = tokens
    x, y = {
        "copied feature": (x.index_copy(1, torch.tensor([4]), x[:, 3:4]), y),
        "fewer tokens than features": (x[:3], y[:3]),
        "one token": (x[:1], y[:1]),
    }[kind]
    found = solve(x, y, start, 1e-4)
    torch.testing.assert_close(found, least_squares(x, y, start, 1e-4), rtol=1e-3, atol=1e-4)
    assert relative_error(x, y, found) < relative_error(x, y, start)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_moments_that_say_nothing_have_no_solution(value):
    nothing = torch.full((2, 2), value, dtype=torch.float64)
    assert ridge_solution(nothing, nothing, torch.ones(2, 2, dtype=torch.float64), 0.1) is None
    fit = Moments.known(nothing, nothing, 2).fit(torch.ones(2, 2), [0.1, 1.0])
    assert fit.ridge is None and torch.equal(fit.weight, torch.ones(2, 2, dtype=torch.float64))


# The strength


@pytest.fixture
def split(tokens):
    """Few tokens to fit to, and others."""
    x, y, start = tokens
    return (x[:20], y[:20]), (x[20:], y[20:]), start


def test_strength_is_the_best_of_those_tried_on_held_out_tokens(split):
    fitted, held_out, start = split
    fit = gather([(*fitted, False), (*held_out, True)]).fit(start, RIDGES)
    errors = {ridge: relative_error(*held_out, least_squares(*fitted, start, ridge)) for ridge in RIDGES}
    assert fit.ridge == min(errors, key=errors.get)
    assert len(set(errors.values())) == len(RIDGES)
    assert (fit.before, fit.after) == pytest.approx((relative_error(*held_out, start), errors[fit.ridge]), rel=1e-6)
    torch.testing.assert_close(fit.weight, least_squares(*fitted, start, fit.ridge), **CLOSE)


def test_start_stays_where_held_out_tokens_say_so(split):
    fitted, (x, _), start = split
    fit = gather([(*fitted, False), (x, x @ start.T, True)]).fit(start, RIDGES)
    assert fit.ridge is None and fit.before == fit.after == pytest.approx(0, abs=1e-12)
    assert torch.equal(fit.weight, start)


def test_start_stays_where_only_rounding_is_better(tokens):
    x, _, start = (part.float() for part in tokens)
    y = x @ start.T
    fit = gather([(x[:200], y[:200], False), (x[200:], y[200:], True)]).fit(start, RIDGES)
    assert fit.ridge is None and torch.equal(fit.weight, start.double())


def test_first_strength_is_taken_where_nothing_was_held_out(tokens):
    x, y, start = tokens
    fit = gather([(x, y, False)]).fit(start, [0.5, 1e-4])
    assert fit.ridge == 0.5 and math.isnan(fit.before) and math.isnan(fit.after)
    torch.testing.assert_close(fit.weight, least_squares(x, y, start, 0.5), **CLOSE)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_strength_is_searched_for_where_none_is_given(split, scale):
    (x, y), (x_held_out, y_held_out), start = split
    noise, of_held_out = draw(7, *y.shape), draw(8, *y_held_out.shape)
    y, y_held_out = y + scale * noise, y_held_out + scale * of_held_out
    found = gather([(x, y, False), (x_held_out, y_held_out, True)]).fit(start)
    grid = [3 * FEATURES / 20 * 10 ** (power / 2) for power in range(-10, 8)]
    errors = {ridge: relative_error(x_held_out, y_held_out, least_squares(x, y, start, ridge)) for ridge in grid}
    best = min(errors, key=errors.get)
    if errors[best] < found.before:
        assert found.ridge == pytest.approx(best) and grid[0] < best < grid[-1]
    else:
        assert found.ridge is None


def test_likely_strength_is_taken_where_nothing_was_held_out(tokens):
    x, y, start = tokens
    fit = gather([(x, y, False)]).fit(start)
    assert fit.ridge == 3 * FEATURES / TOKENS
    torch.testing.assert_close(fit.weight, least_squares(x, y, start, fit.ridge), **CLOSE)


@pytest.mark.parametrize("ridges", [None, RIDGES])
def test_start_stays_where_no_error_is_a_number(split, ridges):
    (x, y), (x_held_out, y_held_out), start = split
    y_held_out = y_held_out.clone()
    y_held_out[0, 0] = math.nan
    fit = gather([(x, y, False), (x_held_out, y_held_out, True)]).fit(start, ridges)
    assert fit.ridge is None and torch.equal(fit.weight, start.double())


def test_targets_that_are_all_zero_and_predicted_keep_the_start(tokens):
    x, y, _ = tokens
    zero = torch.zeros(TARGETS, FEATURES)
    fit = gather([(x, 0 * y, False), (x, 0 * y, True)]).fit(zero, RIDGES)
    assert fit.ridge is None and torch.equal(fit.weight, zero.double())


# Moments


def sums(moments):
    return [
        part
        for one in (moments._fitted, moments._held_out)
        for part in (one.gram, one.cross, torch.tensor(one.square, dtype=torch.float64))
    ]


@pytest.mark.parametrize("sizes", [[400], [1] * 400, [7, 393], [100, 50, 250]])
@pytest.mark.parametrize("constant", [False, True])
def test_moments_do_not_depend_on_how_tokens_are_batched(tokens, sizes, constant):
    x, y, _ = tokens
    moments = gather(
        [(a, b, held_out) for a, b in zip(x.split(sizes), y.split(sizes), strict=True) for held_out in (False, True)],
        constant,
    )
    if constant:
        x = torch.cat([x, torch.ones(TOKENS, 1)], 1)
    expected = [x.T @ x, y.T @ x, y.square().sum()]
    torch.testing.assert_close(sums(moments), expected * 2, rtol=1e-10, atol=1e-8)


def test_blocks_are_tokens_side_by_side(tokens):
    x, y, _ = tokens
    of_blocks = gather([(x.view(20, 20, FEATURES), y.view(20, 20, TARGETS), held_out) for held_out in (False, True)])
    torch.testing.assert_close(sums(of_blocks), sums(gather([(x, y, False), (x, y, True)])))


@pytest.mark.parametrize("tokens_added", [10, 10_000])
def test_memory_does_not_depend_on_the_number_of_tokens(tokens_added):
    moments = gather([(draw(0, tokens_added, FEATURES), draw(1, tokens_added, TARGETS), False)], constant=True)
    held = [moments._fitted.cross, *moments._fitted._products.tensors]
    numbers = (FEATURES + 1) * TARGETS + SymmetricSums.numbers(FEATURES + 1)
    assert sum(value.untyped_storage().nbytes() for value in held) == 8 * numbers
    assert moments._held_out.gram is None


@pytest.mark.parametrize("size", [4, 12])
def test_mapped_moments_are_those_of_mapped_features(tokens, size):
    x, y, _ = tokens
    matrix = draw(4, size, FEATURES + 1)
    mapped = gather([(x[:300], y[:300], False), (x[300:], y[300:], True)], constant=True).mapped(matrix)
    features = torch.cat([x, torch.ones(TOKENS, 1)], 1) @ matrix.T
    expected = gather([(features[:300], y[:300], False), (features[300:], y[300:], True)])
    torch.testing.assert_close(sums(mapped), sums(expected), rtol=1e-9, atol=1e-6)
    start = draw(5, TARGETS, size)
    torch.testing.assert_close(mapped.fit(start, [0.1]).weight, expected.fit(start, [0.1]).weight)


def test_known_moments_are_those_gathered(tokens):
    x, y, start = tokens
    known = Moments.known(x.T @ x, y.T @ x, len(x))
    expected = gather([(x, y, False)]).fit(start, [0.1]).weight
    torch.testing.assert_close(known.fit(start, [0.1]).weight, expected, **CLOSE)
