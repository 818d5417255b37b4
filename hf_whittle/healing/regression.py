"""Ridge regression from second moments that are gathered batch by batch, its strength chosen on held-out tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .symmetric import SymmetricSums

_ROUNDING = 1e-6
"""Rounding of a relative error, since products are summed in single precision."""

_STEP, LOWEST, HIGHEST = math.sqrt(10), 1e-6, 1e3
"""Ratio of strengths that are tried one after the other, and the ends of their range."""


@dataclass(frozen=True)
class Fit:
    """Result of a regression.

    Args:
        weight (`torch.Tensor`): `(targets, features)`, as precise as the sums; the start if no strength was better.
        ridge (`float`, *optional*): the chosen strength; `None` if no strength was better than the start.
        before (`float`): squared error of the start on held-out tokens, relative to the square of the targets.
        after (`float`): the same of `weight`.
        tried (`int`, *optional*, defaults to 1): number of strengths that were tried.
    """

    weight: torch.Tensor
    ridge: float | None
    before: float
    after: float
    tried: int = 1


class Moments:
    """Second moments of features and targets. Memory does not depend on the number of tokens.

    Args:
        constant (`bool`): whether to append a feature that is always 1.
    """

    def __init__(self, constant: bool):
        self.constant = constant
        self._fitted = _Sums()
        self._held_out = _Sums()

    @classmethod
    def known(cls, gram: torch.Tensor, cross: torch.Tensor, tokens: int) -> "Moments":
        """Moments from known sums, with nothing held out.

        Args:
            gram (`torch.Tensor`): `(features, features)`, a constant feature included if there is one.
            cross (`torch.Tensor`): `(targets, features)`.
            tokens (`int`): number of tokens.
        """
        moments = cls(constant=False)
        moments._fitted = _Sums(gram, cross.to(gram.dtype), tokens)
        return moments

    def add(
        self, features: torch.Tensor, targets: torch.Tensor, held_out: bool, weights: torch.Tensor | None = None
    ) -> None:
        """Add tokens.

        Args:
            features (`torch.Tensor`): `(..., features)`.
            targets (`torch.Tensor`): `(..., targets)`.
            held_out (`bool`): whether they are held out.
            weights (`torch.Tensor`, *optional*): weight of each token's squared error, `(...)`; 1 by default.
        """
        x, y = with_constant(features.flatten(0, -2), self.constant), targets.flatten(0, -2)
        if weights is not None:
            root = weights.flatten()[:, None].sqrt()
            x, y = root * x, root * y
        (self._held_out if held_out else self._fitted).add(x, y)

    def mapped(self, matrix: torch.Tensor) -> "Moments":
        """Moments of the features `matrix @ features`; no constant is appended to them.

        Args:
            matrix (`torch.Tensor`): `(new features, features)`.
        """
        moments = Moments(constant=False)
        moments._fitted, moments._held_out = self._fitted.mapped(matrix), self._held_out.mapped(matrix)
        return moments

    def fit(self, start: torch.Tensor, ridges: Sequence[float] | None = None) -> Fit:
        """Minimize the squared error plus a strength times the squared distance of the weights from `start`.

        Each feature's distance is weighted by its mean square, so that a strength means the same at any scale. The
        strength with the lowest held-out error is chosen, or the start if its error is as low up to rounding. With
        nothing held out, the first strength for which the equations can be solved is chosen.

        Args:
            start (`torch.Tensor`): `(targets, features)`.
            ridges (`Sequence[float]`, *optional*): strengths to choose from, relative to the mean square of each
                feature. By default, the search begins at three times the features per token and goes on in steps of
                the square root of 10, up or down, while the held-out error falls; with nothing held out, it ends
                there.
        """
        held_out, gram, cross = self._held_out.gram, self._fitted.gram, self._fitted.cross
        assert gram is not None and cross is not None
        start = start.to(gram.dtype)
        likely = likely_ridge(cross.shape[1], self._fitted.tokens)
        if held_out is None:
            solved = ((ridge, ridge_solution(gram, cross, start, ridge)) for ridge in ridges or [likely])
            ridge, weight = next(((ridge, weight) for ridge, weight in solved if weight is not None), (None, start))
            return Fit(weight, ridge, math.nan, math.nan)
        before = self._held_out.error(start, held_out)

        tried = 0

        def fitted(ridge: float) -> Fit:
            nonlocal tried
            tried += 1
            weight = ridge_solution(gram, cross, start, ridge)
            if weight is None:
                return Fit(start, ridge, before, math.inf)
            return Fit(weight, ridge, before, self._held_out.error(weight, held_out))

        best = min(map(fitted, ridges), key=_error) if ridges else _lowest(fitted, likely)
        if best.after < before - _ROUNDING:
            return replace(best, tried=tried)
        return Fit(start, None, before, before, tried)


def _lowest(fitted: Callable[[float], Fit], ridge: float) -> Fit:
    """The fit with the lowest error that is found from a strength on, in steps up or, if that is no better, down."""
    best = fitted(ridge)
    for step in (_STEP, 1 / _STEP):
        first = best
        while LOWEST <= ridge * step <= HIGHEST and (following := fitted(ridge * step)).after < best.after:
            best, ridge = following, ridge * step
        if best is not first:
            break
    return best


def _error(fit: Fit) -> float:
    return fit.after


class _Sums:
    """Sums over tokens: products of features, products of targets and features, squares of targets."""

    def __init__(self, gram: torch.Tensor | None = None, cross: torch.Tensor | None = None, tokens: int = 0):
        self._products: SymmetricSums | None = None
        self._gram, self.cross, self.tokens = gram, cross, tokens
        self.square = 0.0

    @property
    def gram(self) -> torch.Tensor | None:
        return self._gram if self._products is None else self._products.full()

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if self._products is None or self.cross is None:
            self._products = SymmetricSums(x.shape[1], x.device, torch.float64)
            self.cross = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        self._products.add(x)
        self.cross += y.T @ x
        self.square += y.double().square().sum().item()
        self.tokens += len(x)

    def mapped(self, matrix: torch.Tensor) -> "_Sums":
        gram, cross = self.gram, self.cross
        if gram is None or cross is None:
            return _Sums()
        sums = _Sums(matrix @ gram @ matrix.T, cross @ matrix.T, self.tokens)
        sums.square = self.square
        return sums

    def error(self, weight: torch.Tensor, gram: torch.Tensor) -> float:
        if self.cross is None or not self.square:
            return 0.0
        found = ((weight @ gram) * weight).sum() - 2 * (weight * self.cross).sum()
        return max(float(found) / self.square + 1, 0.0)  # in this order, NaN stays NaN


def likely_ridge(features: int, tokens: int) -> float:
    """The best strength for features that each explain as much, of targets of which they explain a quarter.

    In general it is features per token times the ratio of what is not explained and what is.
    """
    return min(max(3 * features / max(1, tokens), LOWEST), HIGHEST)


def ridge_solution(gram: torch.Tensor, cross: torch.Tensor, start: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Weights `(targets, features)` of a ridge regression centered on `start`; `None` if it is singular.

    Args:
        gram (`torch.Tensor`): `(features, features)`, sums of products of features.
        cross (`torch.Tensor`): `(targets, features)`, sums of products of targets and features.
        start (`torch.Tensor`): `(targets, features)`.
        ridge (`float`): strength, relative to the mean square of each feature.
    """
    squares = gram.diagonal()
    scale = (squares + 1e-6 * squares.mean()).sqrt()  # a feature that is always 0 keeps its start
    if not math.isfinite(float(scale.sum())) or not float(scale.min()) > 0:
        return None
    scaled = gram / scale / scale[:, None]
    scaled.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed:
        return None
    rest = (cross - start @ gram) / scale
    return start + torch.cholesky_solve(rest.T, factor).T / scale


def with_constant(features: torch.Tensor, constant: bool) -> torch.Tensor:
    """Features `(..., features)`, and a last one that is always 1 if there is a `constant`."""
    return F.pad(features, (0, 1), value=1.0) if constant else features


def token_weights(root_mean_squares: torch.Tensor) -> torch.Tensor:
    """Weights of tokens in a regression of hidden states: the inverse of their root mean square.

    The next norm divides by it, and some tokens, mostly the first of a text, have a hundred times that of others
    (massive activations, arXiv 2402.17762): their squares would be nearly all that is fitted.

    Args:
        root_mean_squares (`torch.Tensor`): of each token's hidden state, `(...)`.
    """
    return 1 / root_mean_squares.clamp(min=torch.finfo(root_mean_squares.dtype).tiny ** 0.5)
