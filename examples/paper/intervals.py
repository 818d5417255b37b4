"""Perplexities with intervals over modules, FLOPs to a loss by interpolation, and rank correlations with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

REPEATS = 1000

Point = Mapping[str, Any]
"""A student: `test` has the mean nats per token and the number of blocks of each module, `flops` all FLOPs by part."""


class Modules:
    """Bootstrap draws of test modules, the same ones for all points that are compared.

    Args:
        points (`Sequence[Point]`): points with the same modules.
    """

    def __init__(self, points: Sequence[Point]):
        self.names = list(points[0]["test"])
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(len(self.names), [1 / len(self.names)] * len(self.names), REPEATS)
        self._times = np.vstack([np.ones(len(self.names), dtype=int), drawn])

    def losses(self, point: Point) -> np.ndarray:
        """Mean nats per token on all modules, then on each draw, `(1 + REPEATS,)`."""
        loss, blocks = np.array([point["test"][name] for name in self.names]).T
        weights = self._times * blocks
        return (weights * loss).sum(1) / weights.sum(1)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The first value, with the 5th and 95th percentile of the others."""
    low, high = np.quantile(values[1:], [0.05, 0.95], method="nearest")  # of values that are drawn, infinite ones too
    return float(values[0]), float(low), float(high)


def total(point: Point) -> int:
    """All FLOPs of a point."""
    return sum(point["flops"].values())


def flops_to(flops: Sequence[float], losses: Sequence[float], target: float) -> float:
    """FLOPs that a curve takes to a loss, interpolated in the logarithm of FLOPs.

    Args:
        flops (`Sequence[float]`): ascending FLOPs of the points of the curve, which are positive.
        losses (`Sequence[float]`): nats per token of each.
        target (`float`): the loss to reach.

    Returns:
        `float`: the FLOPs; those of the first point if it reaches the loss, infinity if none does.
    """
    best = math.inf
    for place, (cost, loss) in enumerate(zip(flops, losses, strict=True)):
        if loss <= target:
            if place == 0 or best == loss:
                return cost
            share = (best - target) / (best - loss)
            return math.exp(math.log(flops[place - 1]) * (1 - share) + math.log(cost) * share)
        best = loss
    return math.inf


def kendall_tau(first: np.ndarray, second: np.ndarray) -> float:
    """Tau-b, which corrects for ties; 0 where one side is constant."""
    signs = [np.sign(values[:, None] - values[None, :]) for values in (first, second)]
    norm = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / norm) if norm else 0.0


def taus(
    fitnesses: Mapping[str, np.ndarray], ends: np.ndarray, blocks: np.ndarray, reference: str
) -> dict[str, dict[str, Any]]:
    """Tau of each fitness with students after training, with intervals of a hierarchical bootstrap.

    A draw takes subnets, orders of the text and test modules with replacement, the same ones for all fitnesses, so that
    their differences from the reference have intervals of their own.

    Args:
        fitnesses (`Mapping[str, np.ndarray]`): values of the subnets, `(subnets,)`, by name.
        ends (`np.ndarray`): nats per token after training, `(orders, subnets, modules)`.
        blocks (`np.ndarray`): blocks of each module, `(modules,)`.
        reference (`str`): the fitness that others are compared with.
    """
    rng = np.random.default_rng(0)
    orders, subnets, modules = ends.shape
    found: dict[str, list[float]] = {name: [] for name in [*fitnesses, CEILING]}
    for repeat in range(REPEATS + 1):
        rows, of, weights = np.arange(subnets), np.arange(orders), blocks.astype(float)
        if repeat:
            rows, of = rng.integers(subnets, size=subnets), rng.integers(orders, size=orders)
            weights = blocks * rng.multinomial(modules, [1 / modules] * modules)
        truth = (ends[:, rows] * weights).sum(2) / weights.sum()
        for name, values in fitnesses.items():
            found[name].append(float(np.mean([kendall_tau(values[rows], truth[order]) for order in of])))
        found[CEILING].append(kendall_tau(truth[0], truth[-1]))
    values = {name: np.array(each) for name, each in found.items()}
    return {
        name: {"tau": interval(each), "above_reference": interval(each - values[reference])}
        for name, each in values.items()
    }


CEILING = "the same training on another order of the text"
"""Name of the correlation of one training with another, which no fitness can be expected to exceed by much."""
