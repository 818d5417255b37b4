"""Write docs/paper.md and its pictures from the results, as `make paper` does in the end."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from hf_whittle.cost import num_parameters, training_flops_per_token
from hf_whittle.demo import TEACHER
from hf_whittle.files.sources import read_config
from hf_whittle.files.text import read_json, write_text
from hf_whittle.plots import finish, in_units, new_axes, use_plain_log_ticks

from .cache import HERE
from .headline import PREFIX
from .intervals import Modules, interval, total
from .ratios import STUDENT, Curve, baseline, curves, is_random, mean_over_seeds, ratio
from .sections import (
    count,
    healing_section,
    perplexity_of,
    ranking_section,
    scalability_section,
    searches_section,
    short,
    spaces_section,
    table,
)
from .sections_of_students import distillation_section, downstream_section, teachers_section
from .sizes import SIZES
from .text import LENGTH

RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "paper.md"

HEAD = """# The paper's experiments

`make paper` runs the experiments of [examples/paper](../examples/paper) and writes this page from their results, \
which lie beside them as JSON with versions, machine and commit. `make paper SIZE=gpu` is the same at longer budgets, \
with more seeds. Each result is kept by the content of the code and the settings that determine it, so that an \
interrupted experiment goes on.

All is on the demo's teacher, a GPT-NeoX of 1.7M parameters, and on its text, the Python standard library, split by \
module. Learning rates are picked on search text; a budget with one rate has that of a shorter one. Perplexity is on \
test blocks that the demo does not use, at most {test_blocks} of a module; intervals of 90% are over modules, and \
over seeds, subnets or orders of the text where a section says so, by bootstrap. Training text has 2.6M tokens: \
longer budgets repeat it, as the teacher's training did. Nothing here says how larger models behave.
"""


def main() -> None:
    write_text(PAGE, page())
    _draw(RESULTS)


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {name: read_json(results / f"{name}.json") for name in SECTIONS if (results / f"{name}.json").is_file()}
    sizes = [one["size"] for one in found.values()] or [asdict(SIZES["cpu"])]
    head = HEAD.format(test_blocks=" or ".join(sorted({str(size["test_blocks"]) for size in sizes})))
    missing = [TITLES[name] for name in SECTIONS if name not in found]
    rest = [f"Not measured yet: {', '.join(missing)}.\n"] if missing else []
    return "\n".join([head, *(_section(name, one) for name, one in found.items()), *rest])


def _section(name: str, results: dict[str, Any]) -> str:
    """A section, with the commit, versions and machine of its results."""
    made = results["environment"]
    where = made["gpu"] or made["machine"]
    by = f"torch {made['torch']}, transformers {made['transformers']}, commit {made['commit'][:10]}"
    file = f"[{name}.json](../examples/paper/results/{name}.json)"
    return f"{SECTIONS[name](results)}\n{file}: size `{results['size']['name']}`, {where}, {by}.\n"


# Experiment 1


def _headline(results: dict[str, Any]) -> str:
    points = results["points"]
    modules, of_seeds = Modules(points), _of_seeds(points)
    seeds = len(of_seeds)
    return "\n".join(
        [
            "## Against random initialization",
            "",
            "Students of 0.80M to 0.88M parameters, and random models of that size, some of which learn from the "
            "teacher too. FLOPs are those of search, moments, "
            "healing, importance, the teacher's forward passes and training. "
            f"{count(seeds, 'seed')}.{_teacher(results, modules)}",
            "",
            _arms(of_seeds[0], modules),
            "",
            "R is the FLOPs of the cheapest random initialization to the perplexity that the best one has at the "
            "budget, over all FLOPs of the searched and healed student to the same, interpolated between trainings "
            "with schedules of their own. With sweeps, every learning rate tried is charged to both, those of shorter "
            "budgets too. With the "
            "teacher's training, that is charged to the student, and random initialization learns from text alone.",
            "",
            _ratios(of_seeds, modules),
            "",
            _verdict(of_seeds, modules),
            "",
            "![perplexity over all FLOPs](../examples/paper/results/headline.png)",
            "",
        ]
    )


def _teacher(results: dict[str, Any], modules: Modules) -> str:
    return f" The teacher has {perplexity_of(modules, results['teacher'])}." if "teacher" in results else ""


def _of_seeds(points: Sequence[Any]) -> list[dict[str, Curve]]:
    seeds = sorted({point["seed"] for point in points if point["seed"] is not None})
    of_seeds = [curves(points, seed) for seed in seeds]
    return [each for each in of_seeds if STUDENT in each and any(map(is_random, each))]


def _arms(of_seed: dict[str, Curve], modules: Modules) -> str:
    budgets = sorted({tokens for curve in of_seed.values() for tokens in curve.best})
    rows = []
    for arm, curve in sorted(of_seed.items(), key=lambda each: not is_random(each[0])):
        cells = []
        for tokens in budgets:
            point = curve.best.get(tokens)
            cells.append("" if point is None else f"{perplexity_of(modules, point)}, {total(point) / 1e12:.2f}")
        rows.append([arm, *cells])
    names = ["before training" if tokens == 0 else f"{in_units(tokens)} tokens" for tokens in map(short, budgets)]
    return table(["arm, first seed: perplexity, TFLOPs", *names], rows)


def _ratios(of_seeds: list[dict[str, Curve]], modules: Modules) -> str:
    rows = []
    for tokens in _budgets(of_seeds):
        reached = baseline(of_seeds[0], tokens)
        assert reached is not None
        per_parameter = tokens / _baseline_parameters()
        rows.append(
            [
                f"{in_units(short(tokens))}, {per_parameter:.2g} a parameter",
                f"{perplexity_of(modules, reached[1])}: {reached[0]}",
                *(_ratio(of_seeds, tokens, modules, **how) for how in HOW.values()),
            ]
        )
    return table(["budget", "best random initialization", *HOW], rows)


HOW: dict[str, dict[str, Any]] = {
    "R": {},
    "R with sweeps": {"sweeps": True},
    "R with the teacher's training": {"teacher_training": True},
}


def _budgets(of_seeds: list[dict[str, Curve]]) -> list[int]:
    random = [curve for arm, curve in of_seeds[0].items() if is_random(arm)]
    return sorted({tokens for curve in random for tokens in curve.best})


def _ratios_of(of_seeds: list[dict[str, Curve]], tokens: int, modules: Modules, how: dict[str, Any]) -> list[Any]:
    """Ratios by draw of the seeds that have the budget; 0 where the student does not reach the perplexity."""
    how = {**how, "teacher_training": teacher_flops()} if how.get("teacher_training") else how
    found = [ratio(of_seed, tokens, modules, **how) for of_seed in of_seeds]
    return [each for each in found if each is not None]


def _ratio(of_seeds: list[dict[str, Curve]], tokens: int, modules: Modules, **how: Any) -> str:
    ratios = _ratios_of(of_seeds, tokens, modules, how)
    middle, low, high = interval(mean_over_seeds(ratios))
    if middle == 0:
        return f"not reached, n = {len(ratios)}"
    spread = f" ({low:.2g} to {high:.2g})" if f"{low:.2g}" != f"{high:.2g}" else ""
    return f"{middle:.2g}{spread}, n = {len(ratios)}"


def _verdict(of_seeds: list[dict[str, Curve]], modules: Modules) -> str:
    """Sentences on the longest budget, on where R is 1, and on the line that the teacher's FLOPs would reach."""
    budgets = _budgets(of_seeds)
    middles = [float(mean_over_seeds(_ratios_of(of_seeds, tokens, modules, {}))[0]) for tokens in budgets]
    longest = in_units(short(budgets[-1]))
    student = of_seeds[0][STUDENT]
    start = student.best[min(student.best)]
    reached = baseline(of_seeds[0], budgets[-1])
    assert reached is not None
    parts = [f"At the longest budget measured, {longest} tokens, R is {middles[-1]:.2g}."] if middles[-1] else []
    for (before, after), (low, high) in zip(pairwise(budgets), pairwise(middles), strict=True):
        if low and high and (low - 1) * (high - 1) < 0:
            share = -math.log(low) / math.log(high / low)
            crossing = math.exp(math.log(before) * (1 - share) + math.log(after) * share)
            parts.append(f"It is 1 at {crossing / 1e6:.2g}M tokens.")
    if modules.losses(start)[0] <= modules.losses(reached[1])[0]:
        parts.append(
            "The healed student is better before any training than random initialization is then, so that R is the "
            "budget over the constant cost of search and healing. It grows with the budget until random "
            "initialization passes the student's start, and shrinks from there on: the longest budget here does not "
            "reach the point where training decides."
        )
    scratch = teacher_flops() + total(start)
    per_token = training_flops_per_token(_teacher_config(), PREFIX, sequence_length=LENGTH)
    parts.append(
        f"The teacher's training took {teacher_flops() / 1e12:.3g} TFLOPs. With these and those of the search, a stock "
        f"model of the student's size would train on {scratch / per_token / 1e6:.2g}M tokens from random "
        f"initialization, {scratch / per_token / budgets[-1]:,.0f} times the longest budget measured."
    )
    return " ".join(parts)


def teacher_flops() -> int:
    """FLOPs of training the demo's teacher."""
    log = json.loads((Path(TEACHER) / "training_log.json").read_text())
    return int(log["tokens"] * training_flops_per_token(_teacher_config(), sequence_length=LENGTH))


def _teacher_config() -> Any:
    return read_config(TEACHER)


def _baseline_parameters() -> int:
    return num_parameters(_teacher_config(), PREFIX)


def _draw(results: Path) -> None:
    path = results / "headline.json"
    if not path.is_file():
        return
    points = read_json(path)["points"]
    modules, figure_axes = Modules(points), new_axes()
    figure, axes = figure_axes
    for arm, curve in _of_seeds(points)[0].items():
        if not is_random(arm) and arm != STUDENT and not arm.endswith("sliced"):
            continue
        drawn = [(total(point) / 1e12, math.exp(modules.losses(point)[0])) for point in curve.best.values()]
        drawn = [each for each in drawn if each[0] > 0]
        style = ":" if is_random(arm) else "-"
        axes.plot(*zip(*drawn, strict=True), marker="o", markersize=4, linestyle=style, label=arm, linewidth=1.5)
    axes.set(xlabel="TFLOPs in all (log scale)", ylabel="perplexity on test text (log scale)", xscale="log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    use_plain_log_ticks(axes)
    finish(figure, [axes], results / "headline.png")


TITLES = {
    "headline": "random initialization",
    "healing": "healing at equal FLOPs",
    "distillation": "ways to learn from a teacher",
    "teachers": "teachers of two sizes",
    "downstream": "what a slice tells",
    "ranking": "fitnesses that rank",
    "whole_searches": "whole searches at equal cost",
    "spaces": "search spaces",
    "scalability": "search of super-networks of 6.9B and 12B",
}
"""Experiments as the page names them."""
SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "headline": _headline,
    "healing": healing_section,
    "distillation": distillation_section,
    "teachers": teachers_section,
    "downstream": downstream_section,
    "ranking": ranking_section,
    "whole_searches": searches_section,
    "spaces": spaces_section,
    "scalability": scalability_section,
}


if __name__ == "__main__":
    main()
