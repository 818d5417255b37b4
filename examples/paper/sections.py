"""Sections of the page beside that of the headline, and what all sections share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_whittle.plots import in_units

from .intervals import CEILING, Modules, interval, taus, total
from .ratios import curves

# Experiment 4


def healing_section(results: dict[str, Any]) -> str:
    points = results["points"]
    modules = Modules(points)
    seeds = sorted({point["seed"] for point in points if point["seed"] is not None})
    budgets = sorted({point["tokens"] for point in points})
    rows = []
    for arm in dict.fromkeys(point["arm"] for point in points):
        cells = []
        for tokens in budgets:
            found = [curves(points, seed)[arm].best.get(tokens) for seed in seeds if arm in curves(points, seed)]
            known = [point for point in found if point is not None]
            losses = [float(modules.losses(point)[0]) for point in known]
            cells.append(
                f"{math.exp(np.mean(losses)):.1f} ± {_spread(losses)}, {total(known[0]) / 1e12:.2f}" if known else ""
            )
        rows.append([arm, *cells])
    names = ["no training" if tokens == 0 else f"{in_units(short(tokens))} tokens" for tokens in budgets]
    return "\n".join(
        [
            "## Healing at equal FLOPs",
            "",
            "One subnet, four of six layers at three quarters of the width, as a slice and healed, then distilled: "
            f"perplexity and all TFLOPs. {count(len(seeds), 'seed')} of calibration text and of the order of "
            "training text; ± is half of the range over seeds.",
            "",
            table(["start: perplexity, TFLOPs", *names], rows),
            "",
        ]
    )


def _spread(losses: list[float]) -> str:
    return f"{(math.exp(max(losses)) - math.exp(min(losses))) / 2:.1f}"


# Experiment 3


def ranking_section(results: dict[str, Any]) -> str:
    subnets = results["subnets"]
    names = list(subnets[0]["points"][0]["test"])
    blocks = np.array([subnets[0]["points"][0]["test"][name][1] for name in names])
    fitnesses = {name: np.array([row["fitnesses"][name] for row in subnets]) for name in subnets[0]["fitnesses"]}
    columns: dict[str, Any] = {}
    for start in ("sliced", "healed"):
        for tokens in sorted({point["tokens"] for point in subnets[0]["points"]} - {0}):
            ends = [
                [_of(row["points"], start, tokens, order, names) for row in subnets]
                for order in sorted({point["seed"] for point in subnets[0]["points"] if point["seed"] is not None})
            ]
            column = f"{start}, {in_units(short(tokens))} tokens"
            columns[column] = taus(fitnesses, np.array(ends), blocks, "perplexity of the slice")
    rows = [[name, *(_tau(column[name]) for column in columns.values())] for name in [*fitnesses, CEILING]]
    return "\n".join(
        [
            "## Fitnesses that rank",
            "",
            f"{len(subnets)} coarse layer-wise subnets, drawn from the demo's bin and none left out, each trained as a "
            "slice and healed on two orders of the text. Kendall's tau with perplexity after training, with 90% "
            "intervals over subnets, orders and modules; in brackets, the difference from the perplexity of the slice "
            "on the same draws.",
            "",
            table(["fitness", *columns], rows),
            "",
        ]
    )


def _of(points: Sequence[Any], start: str, tokens: int, order: int, names: Sequence[str]) -> list[float]:
    of = next(p for p in points if (p["arm"], p["tokens"], p["seed"]) == (start, tokens, order))
    return [of["test"][name][0] for name in names]


def _tau(values: dict[str, Any]) -> str:
    tau, low, high = values["tau"]
    _, least, most = values["above_reference"]
    return f"{tau:.2f} ({low:.2f} to {high:.2f}) [{least:+.2f} to {most:+.2f}]"


def searches_section(results: dict[str, Any]) -> str:
    points = results["points"]
    modules = Modules(points)
    arms = list(dict.fromkeys(point["arm"] for point in points))
    seeds = sorted({point["seed"] for point in points})
    budgets = sorted({point["tokens"] for point in points})
    by_seed = {seed: curves(points, seed) for seed in seeds}
    complete = [
        seed for seed in seeds if all(arm in by_seed[seed] and budgets[-1] in by_seed[seed][arm].best for arm in arms)
    ]
    rows = []
    for arm in arms:
        cells = []
        for tokens in budgets:
            losses = [float(modules.losses(by_seed[seed][arm].best[tokens])[0]) for seed in complete]
            cells.append(f"{math.exp(np.mean(losses)):.1f} ± {_spread(losses)}" if losses else "")
        found = [row for row in results["searches"] if row["arm"] == arm]
        flops = f"{np.mean([row['flops'] for row in found]) / 1e12:.2f}" if found else "0"
        rows.append([arm, flops, f"{np.mean([row['evaluations'] for row in found]):.0f}" if found else "", *cells])
    names = ["healed" if tokens == 0 else f"after {in_units(short(tokens))} tokens" for tokens in budgets]
    return "\n".join(
        [
            "## Whole searches at equal cost",
            "",
            f"Perplexity of the student that each finds, mean of {count(len(complete), 'seed')}; ± is half of the "
            "range. All are healed on 24,576 tokens and trained with one learning rate.",
            "",
            table(["search", "TFLOPs", "evaluations", *names], rows),
            "",
        ]
    )


# Experiment 2


def spaces_section(results: dict[str, Any]) -> str:
    searches = results["searches"]
    shares = sorted({row["share"] for row in searches})
    names = {(kind, wise): f"{kind}, {'layer-wise' if wise else 'uniform'}" for kind in KINDS for wise in (False, True)}
    own = {
        (name, share): [
            row["best_so_far"]
            for row in searches
            if (row["granularity"], row["layer_wise"], row["share"]) == (*place, share)
        ]
        for place, name in names.items()
        for share in shares
    }
    rows = [[name, *(_found(own[name, share]) for share in shares)] for name in names.values()]
    ends = {place: np.mean([each[-1] for each in found]) for place, found in own.items() if found}
    best = [min((ends[name, share], name) for name in names.values() if (name, share) in ends)[1] for share in shares]
    seeds = len({row["seed"] for row in searches})
    number = max(row["evaluations"] for row in searches)
    fell = max(1 - row["best_so_far"][-1] / row["best_so_far"][4 * len(row["best_so_far"]) // 5] for row in searches)
    return "\n".join(
        [
            "## Search spaces",
            "",
            "Lowest perplexity of a slice on the 4,096 search tokens, after the first 50 evaluations of the paper's "
            f"evolution and after all {number}, whose own number is 5,050"
            f"{': mean, lowest and highest' if seeds > 1 else ''}; {count(seeds, 'seed')}.",
            "",
            table(["space", *(f"{share:.0%} of the parameters" for share in shares)], rows),
            "",
            "The lowest are "
            + ", ".join(f"{name} at {share:.0%}" for name, share in zip(best, shares, strict=True))
            + ". In the paper, fine-grained spaces lead in small bins and coarse ones in large bins. In the last fifth "
            f"of the evaluations here, the lowest perplexity of a search still fell by up to {fell:.0%}.",
            "",
        ]
    )


KINDS = ("coarse", "fine")


def _found(curves_of: Sequence[Sequence[float]]) -> str:
    if not curves_of:
        return ""
    first, ends = (np.array([each[place] for each in curves_of]) for place in (min(50, len(curves_of[0])) - 1, -1))
    spread = f" ({ends.min():.1f} to {ends.max():.1f})" if len(ends) > 1 else ""
    return f"{first.mean():.1f}, {ends.mean():.1f}{spread}"


# Experiment 8


def scalability_section(results: dict[str, Any]) -> str:
    bins = list(dict.fromkeys(row["bin"] for row in results["speed"]))
    spaces = list(dict.fromkeys((row["granularity"], row["layer_wise"]) for row in results["speed"]))
    speed = {
        (row["supernet"], row["bin"], row["granularity"], row["layer_wise"]): row["per_second"]
        for row in results["speed"]
    }
    speeds = [
        [f"{supernet}, {granularity}, {'layer-wise' if layer_wise else 'uniform'}"]
        + [f"{speed[supernet, bin, granularity, layer_wise]:.3g}" for bin in bins]
        for supernet in dict.fromkeys(row["supernet"] for row in results["speed"])
        for granularity, layer_wise in spaces
    ]
    parts = [
        "## Search of super-networks of 6.9B and 12B",
        "",
        "Candidates that an evolution proposes, checks, counts and records in a second of one core, in the paper's "
        "bins, 5% around Pythia-410M, 1B and 2.8B. The model is not run.",
        "",
        table(["super-network, space", *bins], speeds),
        "",
        *_convergence(results["convergence"]),
        *_plans(results["plans"]),
    ]
    return "\n".join(parts)


def _convergence(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    numbers = sorted({int(number) for row in rows for number in row["best_after"]})
    cells = []
    for search in dict.fromkeys(row["search"] for row in rows):
        own = [row["best_after"] for row in rows if row["search"] == search]
        values = [[each[str(number)] for each in own if str(number) in each] for number in numbers]
        cells.append([search, *map(_range, values)])
    seeds = len({row["seed"] for row in rows})
    return [
        f"The lowest value of a made-up fitness, in which layers, heads, neurons and channels have worths of their own "
        f"and neighboring layers need each other, in the coarse layer-wise space and the bin around Pythia-"
        f"{rows[0]['bin']} of {rows[0]['supernet']}: mean, lowest and highest of {count(seeds, 'seed')}, each with "
        "worths of its own. It tells how searches cope with so many dimensions, not how they do on a model.",
        "",
        table(["search", *(f"{number:,} evaluations" for number in numbers)], cells),
        "",
    ]


def _range(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return "none in the bin yet"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def _plans(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [
        [
            row["search"],
            row["bin"],
            f"{row['evaluations']:,}",
            *(f"{flops / 1e15:,.0f}" for flops in (row["likely_flops"] or row["flops"], row["flops"])),
        ]
        for row in rows
    ]
    return [
        f"Whole searches of {rows[0]['supernet']} by `hf-whittle plan`, each candidate on 4,096 tokens, moments on "
        "131,072. The FLOPs of healed perplexity count moments and the healing of each candidate; estimates are for "
        "candidates drawn at random from the bin.",
        "",
        table(["search", "bin", "evaluations at most", "PFLOPs, estimated", "PFLOPs at most"], cells),
        "",
    ]


def perplexity_of(modules: Modules, point: Any) -> str:
    middle, low, high = (math.exp(value) for value in interval(modules.losses(point)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def short(tokens: int) -> float:
    """Tokens rounded to two digits."""
    return float(f"{tokens:.2g}")


def count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
