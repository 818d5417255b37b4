"""Sections of the page on how students learn: ways of distillation, teachers, and what a slice tells."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_whittle.plots import in_units

from .intervals import REPEATS, Modules, Point, interval, kendall_tau, total
from .ratios import curves
from .sections import count, perplexity_of, short, table

# Experiment 5


def distillation_section(results: dict[str, Any]) -> str:
    points = results["points"]
    modules = Modules(points)
    starts, ways = (list(dict.fromkeys(point[name] for point in points)) for name in ("start", "way"))
    by_seed = {seed: curves(points, seed) for seed in sorted({point["seed"] for point in points})}
    complete = [seed for seed, arms in by_seed.items() if len(arms) == len(by_seed[0])] or [0]
    arms = {
        arm: [next(iter(by_seed[seed][arm].best.values())) for seed in complete if arm in by_seed[seed]]
        for arm in by_seed[0]
    }
    rows = []
    for way in ways:
        cells = []
        for start in starts:
            own, papers = (arms.get(f"{start}: {each}", []) for each in (way, ways[0]))
            cells += [_mean(modules, own), "" if way == ways[0] else _over(modules, own, papers)]
        rows.append([way, *cells])
    columns = [name for start in starts for name in (f"{start}: perplexity", "over the first row's")]
    costs = {point["distilled"]: f"{total(point) / 1e12:.2f}" for point in points}
    kinds = {True: "with the teacher's passes", False: "on text alone"}
    return "\n".join(
        [
            "## Ways to learn from a teacher",
            "",
            "The first entries of the teacher, four of six layers at three quarters of the width, and a random model "
            f"of the same architecture, trained on {in_units(short(points[0]['tokens']))} tokens: "
            f"{' and '.join(f'{costs[each]} TFLOPs {kinds[each]}' for each in kinds if each in costs)}, so that text "
            "alone has as many tokens but fewer FLOPs. Each way has a learning rate of its own, and all read the text "
            "in one order. A second column has the perplexity over that of the paper's way, with an interval over "
            f"modules alone: what another order of the text would change is not in it. {count(len(complete), 'seed')}.",
            "",
            table(["changed", *columns], rows),
            "",
        ]
    )


def _mean(modules: Modules, points: Sequence[Point]) -> str:
    """Geometric mean of perplexities."""
    return f"{math.exp(np.mean([modules.losses(point)[0] for point in points])):.1f}" if points else ""


def _over(modules: Modules, own: Sequence[Point], papers: Sequence[Point]) -> str:
    if not own or not papers:
        return ""
    losses, others = (np.mean([modules.losses(point) for point in each], axis=0) for each in (own, papers))
    middle, low, high = np.exp(interval(losses - others))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


# Experiment 6


def teachers_section(results: dict[str, Any]) -> str:
    points, teachers, small = results["points"], results["teachers"], results["small_teacher"]
    modules, of_seed = Modules(points), curves(points, 0)
    budgets = sorted({point["tokens"] for point in points})
    rows = []
    for arm, curve in of_seed.items():
        found = [curve.best.get(tokens) for tokens in budgets]
        cells = [f"{perplexity_of(modules, each)}, {total(each) / 1e12:.2f}" if each else "" for each in found]
        origin, _, teacher = arm.partition(", taught by ")
        rows.append([origin, teacher, *cells])
    sizes = " and ".join(
        f"{name}, {each['parameters'] / 1e6:.2f}M parameters, perplexity {perplexity_of(modules, each)}"
        for name, each in teachers.items()
    )
    names = ["no training" if tokens == 0 else f"{in_units(short(tokens))} tokens" for tokens in budgets]
    trained = {arm: curve.best[budgets[-1]]["search"] for arm, curve in of_seed.items() if budgets[-1] in curve.best}
    best = min(trained, key=lambda arm: trained[arm])
    return "\n".join(
        [
            "## Teachers of two sizes",
            "",
            "A student of 0.41M parameters (three layers, 64 channels), random or cut from either teacher and healed, "
            "taught by either or by text alone: perplexity, and TFLOPs of healing, teacher and training. The "
            f"teachers: {sizes}. The small one was cut from the large one by hand, healed and distilled from it on "
            f"{in_units(short(small['tokens']))} tokens, for {sum(small['flops'].values()) / 1e12:.1f} TFLOPs; its "
            "making is not counted, nor is the large one's. The two differ in training as well as in size, and this "
            "does not tell which of both matters. One seed.",
            "",
            table(["start", "taught by", *names], rows),
            "",
            f"On search text, the best row after {names[-1]} is: {best}.",
            "",
        ]
    )


# Experiment 7


def downstream_section(results: dict[str, Any]) -> str:
    rows, tasks = results["subnets"], {"cloze": "a missing word", "continuation": "a continuation"}
    modules = Modules([row["after"] for row in rows])
    shares = np.array([row["share"] for row in rows])
    before = {
        "size, the larger the better": -shares,
        "perplexity of the slice": np.array([row["before"]["search"] for row in rows]),
    }
    after = {"perplexity": np.array([modules.losses(row["after"])[0] for row in rows])}
    for name, task in tasks.items():
        after[f"errors at {task}"] = np.array([1 - row["after"]["tasks"][name] for row in rows])
    cells = [
        [name, *("" if first is second else _ranks(first, second) for second in after.values())]
        for name, first in [*before.items(), ("perplexity after training", after["perplexity"])]
    ]
    given = [
        _spearman_given(before["perplexity of the slice"], second, before["size, the larger the better"])
        for second in after.values()
    ]
    cells.append(["perplexity of the slice, given size: rho", *(f"{each:.2f}" for each in given)])
    perplexities = np.exp(after["perplexity"])
    scores = " and ".join(
        f"{min(of):.0%} to {max(of):.0%} at choosing {task} (the teacher {results['teacher']['tasks'][name]:.0%}, "
        f"{results['tasks'][name]} questions)"
        for name, task in tasks.items()
        for of in [[row["after"]["tasks"][name] for row in rows]]
    )
    lines = [
        "## What a slice tells",
        "",
        f"{len(rows)} coarse layer-wise subnets of {min(shares):.0%} to {max(shares):.0%} of the teacher's parameters, "
        "spread over the sizes, each trained as a slice by distillation on "
        f"{in_units(short(rows[0]['after']['tokens']))} tokens. They end at perplexities of {min(perplexities):.1f} "
        f"to {max(perplexities):.1f}, and have {scores}; guessing has 25%. Questions are made from test text, and run "
        "by lm-evaluation-harness. Spearman's rho, and Kendall's tau with its interval over subnets, of what is known "
        "before training, and of perplexity after it, with what training leads to. The slice is judged on search "
        "text. One order of the text, and one learning rate for each third of the sizes, bracketed on one subnet.",
        "",
    ]
    if len(rows) >= LEAST_RANKED:
        lines += [table(["ranked by", *after], cells), ""]
        lines += ["Size alone ranks as the first row says. A search compares subnets of about one size.", ""]
    return "\n".join(lines)


LEAST_RANKED = 5
"""Fewest subnets whose ranks are told."""


def _ranks(first: np.ndarray, second: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    draws = [np.arange(len(first)), *(rng.integers(len(first), size=len(first)) for _ in range(REPEATS))]
    middle, low, high = interval(np.array([kendall_tau(first[rows], second[rows]) for rows in draws]))
    return f"{spearman(first, second):.2f}, {middle:.2f} ({low:.2f} to {high:.2f})"


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks; 0 where one side is constant."""
    return _correlation(rankdata(first), rankdata(second))


def _spearman_given(first: np.ndarray, second: np.ndarray, known: np.ndarray) -> float:
    """Correlation of what the ranks of a third quantity leave of the ranks of two, by linear regression."""
    ranks = rankdata(known) - rankdata(known).mean()
    norm = max(float(ranks @ ranks), 1e-12)
    rest = [each - each.mean() - (each @ ranks) / norm * ranks for each in (rankdata(first), rankdata(second))]
    return _correlation(*rest)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    constant = min(np.std(first), np.std(second)) < 1e-9
    return 0.0 if constant else float(np.corrcoef(first, second)[0, 1])
