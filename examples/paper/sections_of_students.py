"""Sections of the page on how students learn: ways of distillation, teachers, and what a slice tells."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_whittle.plots import in_units

from .intervals import REPEATS, Modules, Point, interval, kendall_tau, total
from .sections import count, perplexity_of, short, table

# Experiment 5


def distillation_section(results: dict[str, Any]) -> str:
    points = results["points"]
    modules = Modules(points)
    starts, ways = (list(dict.fromkeys(point[name] for point in points)) for name in ("start", "way"))
    seeds = {point["seed"] for point in points}
    rows = []
    for way in ways:
        best = [_best_of(points, start=start, way=way) for start in starts]
        rows.append(
            [way, *(cell for each in best for cell in (_mean(modules, each), _difference(modules, points, each)))]
        )
    columns = [name for start in starts for name in (f"{start}: perplexity", "of the paper's")]
    tokens, flops = points[0]["tokens"], {point["distilled"]: total(point) / 1e12 for point in points}
    return "\n".join(
        [
            "## Ways to learn from a teacher",
            "",
            f"The first entries of the teacher (four of six layers, three quarters of the width) and a random model of "
            f"the same architecture, trained on {in_units(short(tokens))} tokens in one order, each way with a "
            f"learning rate of its own: {flops.get(True, 0):.2f} TFLOPs with the teacher's passes, "
            f"{flops.get(False, 0):.2f} on text alone. A second column has the perplexity over that of the paper's "
            f"way, with its interval over modules. {count(len(seeds), 'seed')}.",
            "",
            table(["changed", *columns], rows),
            "",
        ]
    )


def _best_of(points: Sequence[Point], **known: Any) -> list[Point]:
    """The best points on search text, one a seed and number of tokens, of those that are known so."""
    own = [point for point in points if all(point[name] == value for name, value in known.items())]
    worst_first = sorted(own, key=lambda point: -point["search"])
    return list({(point["seed"], point["tokens"]): point for point in worst_first}.values())


def _mean(modules: Modules, points: Sequence[Point]) -> str:
    return f"{math.exp(np.mean([modules.losses(point)[0] for point in points])):.1f}" if points else ""


def _difference(modules: Modules, points: Sequence[Point], own: Sequence[Point]) -> str:
    if not own or own[0]["way"] == points[0]["way"]:
        return ""
    papers = _best_of(points, start=own[0]["start"], way=points[0]["way"])
    losses, others = (np.mean([modules.losses(point) for point in each], axis=0) for each in (own, papers))
    middle, low, high = np.exp(interval(losses - others))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


# Experiment 6


def teachers_section(results: dict[str, Any]) -> str:
    points, teachers = results["points"], results["teachers"]
    modules = Modules(points)
    budgets = sorted({point["tokens"] for point in points})
    rows = []
    for origin in dict.fromkeys(point["origin"] for point in points):
        for teacher in dict.fromkeys(point["teacher"] for point in points):
            best = {
                tokens: _best_of(points, origin=origin, tokens=tokens, **({"teacher": teacher} if tokens else {}))
                for tokens in budgets
            }
            cells = [
                f"{perplexity_of(modules, each[0])}, {total(each[0]) / 1e12:.2f}" if each else ""
                for each in best.values()
            ]
            rows.append([origin, teacher or "text alone", *cells])
    sizes = " and ".join(
        f"{name}, {each['parameters'] / 1e6:.2f}M parameters, {perplexity_of(modules, each)}"
        for name, each in teachers.items()
    )
    names = ["no training" if tokens == 0 else f"{in_units(short(tokens))} tokens" for tokens in budgets]
    return "\n".join(
        [
            "## Teachers of two sizes",
            "",
            f"A student of 0.41M parameters (three layers, 64 channels) from random initialization and healed from "
            f"either teacher, taught by either or by text alone: perplexity, and TFLOPs of healing, teacher and "
            f"training. The teachers: {sizes}. The smaller one was cut from the larger by hand, healed and distilled "
            f"from it; that is not counted. {count(len({point['seed'] for point in points}), 'seed')}, of which the "
            "first is shown.",
            "",
            table(["cut from", "taught by", *names], rows),
            "",
        ]
    )


# Experiment 7


def downstream_section(results: dict[str, Any]) -> str:
    rows = results["subnets"]
    modules = Modules([row["before"] for row in rows])
    values = {
        "parameters": [-row["parameters"] for row in rows],
        "perplexity of the slice": [modules.losses(row["before"])[0] for row in rows],
        "perplexity after training": [modules.losses(row["after"])[0] for row in rows],
        "error at filling in a word": [1 - row["after"]["tasks"]["cloze"] for row in rows],
        "error at choosing a continuation": [1 - row["after"]["tasks"]["continuation"] for row in rows],
    }
    named = {name: np.array(each) for name, each in values.items()}
    before, after = list(named)[:3], list(named)[2:]
    cells = [
        [first, *(_ranks(named[first], named[second]) if first != second else "" for second in after)]
        for first in before
    ]
    sizes, tokens = results["tasks"], rows[0]["after"]["tokens"]
    best, worst = (f(math.exp(modules.losses(row["after"])[0]) for row in rows) for f in (min, max))
    scores = " and ".join(
        f"{_range(row['after']['tasks'][name] for row in rows)} at {task}"
        for name, task in (("cloze", "filling in a word"), ("continuation", "choosing one of four continuations"))
    )
    return "\n".join(
        [
            "## What a slice tells",
            "",
            f"{len(rows)} coarse layer-wise subnets, one drawn from each part of the range of 25% to 95% of the "
            f"teacher's parameters, trained as slices by distillation on {in_units(short(tokens))} tokens: perplexity "
            f"{best:.1f} to {worst:.1f}, accuracy {scores} ({sizes['cloze']} and {sizes['continuation']} questions "
            "made from test text, by lm-evaluation-harness). Correlations of ranks over subnets, Spearman's rho and "
            "Kendall's tau, with 90% intervals of tau over subnets. One order of the text.",
            "",
            table(["before training", *after], cells),
            "",
        ]
    )


def _ranks(first: np.ndarray, second: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    draws = [np.arange(len(first)), *(rng.integers(len(first), size=len(first)) for _ in range(REPEATS))]
    middle, low, high = interval(np.array([kendall_tau(first[rows], second[rows]) for rows in draws]))
    return f"{_spearman(first, second):.2f}, {middle:.2f} ({low:.2f} to {high:.2f})"


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks, those of ties averaged; 0 where one side is constant."""
    ranks = [
        [(float(np.sum(values < value)) + float(np.sum(values <= value)) - 1) / 2 for value in values]
        for values in (first, second)
    ]
    return float(np.corrcoef(*ranks)[0, 1]) if np.std(ranks, axis=1).all() else 0.0


def _range(shares: Iterable[float]) -> str:
    known = list(shares)
    return f"{min(known):.0%} to {max(known):.0%}"
