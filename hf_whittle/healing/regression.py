"""Ridge regression from second moments that are gathered batch by batch, its strength chosen on held-out tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ROUNDING = 1e-6
"""Rounding of a relative error, since products are summed in single precision."""


@dataclass(frozen=True)
class Fit:
    """Result of a regression.

    Args:
        weight (`torch.Tensor`): `(targets, features)`, in double precision; the start if no strength was better.
        ridge (`float`, *optional*): the chosen strength; `None` if no strength was better than the start.
        before (`float`): squared error of the start on held-out tokens, relative to the square of the targets.
        after (`float`): the same of `weight`.
    """

    weight: torch.Tensor
    ridge: float | None
    before: float
    after: float


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
    def known(cls, gram: torch.Tensor, cross: torch.Tensor) -> "Moments":
        """Moments from known sums, with nothing held out.

        Args:
            gram (`torch.Tensor`): `(features, features)`, a constant feature included if there is one.
            cross (`torch.Tensor`): `(targets, features)`.
        """
        moments = cls(constant=False)
        moments._fitted.gram, moments._fitted.cross = gram.double(), cross.double()
        return moments

    def add(self, features: torch.Tensor, targets: torch.Tensor, held_out: bool) -> None:
        """Add tokens.

        Args:
            features (`torch.Tensor`): `(..., features)`.
            targets (`torch.Tensor`): `(..., targets)`.
            held_out (`bool`): whether they are held out.
        """
        x, y = features.flatten(0, -2), targets.flatten(0, -2)
        if self.constant:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        (self._held_out if held_out else self._fitted).add(x, y)

    def mapped(self, matrix: torch.Tensor) -> "Moments":
        """Moments of the features `matrix @ features`; no constant is appended to them.

        Args:
            matrix (`torch.Tensor`): `(new features, features)`.
        """
        moments = Moments(constant=False)
        moments._fitted, moments._held_out = self._fitted.mapped(matrix), self._held_out.mapped(matrix)
        return moments

    def fit(self, start: torch.Tensor, ridges: Sequence[float]) -> Fit:
        """Minimize the squared error plus `ridge` times the squared distance of the weights from `start`.

        Each feature's distance is weighted by its mean square, so that a strength means the same at any scale. The
        strength with the lowest held-out error is chosen, or the start if its error is as low up to rounding. With
        nothing held out, the first strength for which the equations can be solved is chosen.

        Args:
            start (`torch.Tensor`): `(targets, features)`.
            ridges (`Sequence[float]`): strengths, relative to the mean square of each feature.
        """
        start = start.double()
        if self._held_out.gram is None:
            solved = ((ridge, self._fitted.solve(start, ridge)) for ridge in ridges)
            found = next(((ridge, weight) for ridge, weight in solved if weight is not None), (None, start))
            return Fit(found[1], found[0], math.nan, math.nan)
        before = self._held_out.error(start)
        best = Fit(start, None, before, before)
        for ridge in ridges:
            weight = self._fitted.solve(start, ridge)
            if weight is None:
                continue
            error = self._held_out.error(weight)
            if error < min(best.after, before - _ROUNDING):
                best = Fit(weight, ridge, before, error)
        return best


class _Sums:
    """Sums over tokens: products of features, products of targets and features, squares of targets."""

    def __init__(self) -> None:
        self.gram: torch.Tensor | None = None
        self.cross: torch.Tensor | None = None
        self.square = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if self.gram is None or self.cross is None:
            self.gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
            self.cross = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        self.gram += x.T @ x
        self.cross += y.T @ x
        self.square += y.double().square().sum().item()

    def mapped(self, matrix: torch.Tensor) -> "_Sums":
        sums = _Sums()
        if self.gram is None or self.cross is None:
            return sums
        sums.gram, sums.cross, sums.square = matrix @ self.gram @ matrix.T, self.cross @ matrix.T, self.square
        return sums

    def error(self, weight: torch.Tensor) -> float:
        if self.gram is None or self.cross is None or not self.square:
            return 0.0
        found = ((weight @ self.gram) * weight).sum() - 2 * (weight * self.cross).sum()
        return max(0.0, float(found) / self.square + 1)

    def solve(self, start: torch.Tensor, ridge: float) -> torch.Tensor | None:
        assert self.gram is not None and self.cross is not None
        return ridge_solution(self.gram, self.cross, start, ridge)


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
