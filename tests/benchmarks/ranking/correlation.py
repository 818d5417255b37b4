"""Kendall's tau of fitnesses with the truth, by group and over all, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.paper.intervals import kendall_tau

REPEATS = 1000
LEAST = 5  # subnets of a group that counts

Values = Mapping[str, float]
"""Values of a subnet by name: the fitnesses, and the truth."""


def rank(groups: Mapping[str, Sequence[Values]], truth: str, reference: str) -> dict[str, Any]:
    """Tau of every fitness with the truth, in each group and their mean over groups, with 90% bootstrap intervals.

    The bootstrap draws subnets within each group, the same ones for all fitnesses, so that the difference from the
    reference fitness has an interval of its own.

    Args:
        groups (`Mapping`): values of the subnets, which all have the truth, by group.
        truth (`str`): name of the truth.
        reference (`str`): fitness that the others are compared with.
    """
    groups = {name: rows for name, rows in groups.items() if len(rows) >= LEAST}
    names = sorted({name for rows in groups.values() for row in rows for name in row} - {truth})
    rng = np.random.default_rng(0)
    draws = {
        group: [np.arange(len(rows)), *rng.integers(0, len(rows), (REPEATS, len(rows)))]
        for group, rows in groups.items()
    }
    taus = {
        name: np.array([_taus(rows, name, truth, draws[group]) for group, rows in groups.items()]) for name in names
    }
    result: dict[str, Any] = {"subnets": {group: len(rows) for group, rows in groups.items()}, "overall": {}}
    for name, of_groups in taus.items():
        overall = of_groups.mean(0)
        result["overall"][name] = summary(overall)
        if reference in taus and name != reference:
            result["overall"][name]["above_reference"] = summary(overall - taus[reference].mean(0))
    for index, group in enumerate(groups):
        result[group] = {name: summary(of_groups[index]) for name, of_groups in taus.items()}
    return result


def _taus(rows: Sequence[Values], name: str, truth: str, draws: Sequence[np.ndarray]) -> list[float]:
    """Tau of the subnets, and of each draw from them."""
    fitness, ends = (np.array([row[key] for row in rows]) for key in (name, truth))
    return [kendall_tau(fitness[draw], ends[draw]) for draw in draws]


def summary(values: np.ndarray) -> dict[str, Any]:
    """The first value, with the 5th and 95th percentile of the others."""
    low, high = np.quantile(values[1:], [0.05, 0.95])
    return {"tau": round(float(values[0]), 3), "tau_90": [round(float(low), 3), round(float(high), 3)]}
