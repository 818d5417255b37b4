"""Pictures of a search."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from ..plots import _axes, _finish, _in_units, _plain_log_ticks
from .algorithm import Evaluation
from .result import SearchResult

_COLOURS = {"sample": "#9aa5b1", "mutation": "#2f6fde", "crossover": "#e07b39", "answer": "#b83280"}
_OTHER_COLOUR = "#3f9b6c"


def plot_search(result: SearchResult, path: str | Path) -> None:
    """Draw the fitness of every answer in the order of evaluation, and the best so far, into a PNG file.

    Evaluations on a share of the tokens, or by what stands for it in a staged fitness, are drawn small and pale; those
    outside of the bin are left out.
    """
    figure, axes = _axes()
    numbered = [(i, e) for i, e in enumerate(result.evaluations, 1) if e.bins and math.isfinite(e.fitness)]
    for origin in dict.fromkeys(evaluation.origin for _, evaluation in numbered):
        colour = _COLOURS.get(origin, _OTHER_COLOUR)
        shown = [(i, e) for i, e in numbered if e.origin == origin]
        axes.scatter(
            [i for i, _ in shown],
            [e.fitness for _, e in shown],
            s=[9 if e.share == 1 else 3 for _, e in shown],
            c=[to_rgba(colour, 0.7 if e.share == 1 else 0.3) for _, e in shown],
            label=f"by {origin}",
            linewidths=0,
        )
    curve = [(i, lowest) for i, lowest in enumerate(result.best_so_far(), 1) if math.isfinite(lowest)]
    if curve:
        axes.step(*zip(*curve, strict=True), where="post", color="#111827", label="best so far")
    _log_if_positive(axes, [evaluation for _, evaluation in numbered])
    axes.set(xlabel="subnets evaluated", ylabel=", ".join(_fitness_labels(result)))
    _finish(figure, axes, path)


def plot_pareto(result: SearchResult, path: str | Path, cost: Literal["parameters", "cost"] = "parameters") -> None:
    """Draw fitness over a cost of every answer, and the Pareto front, into a PNG file."""
    figure, axes = _axes()
    answers = [answer for answer in result.answers if math.isfinite(answer.fitness)]
    front = [answer for answer in result.pareto_front(cost) if math.isfinite(answer.fitness)]
    axes.scatter(
        [getattr(answer, cost) for answer in answers],
        [answer.fitness for answer in answers],
        s=9, color=_COLOURS["sample"], alpha=0.6, linewidths=0, label="subnets evaluated",
    )  # fmt: skip
    axes.step(
        [getattr(answer, cost) for answer in front],
        [answer.fitness for answer in front],
        where="post", color=_COLOURS["mutation"], marker="o", markersize=4, label="Pareto front",
    )  # fmt: skip
    _log_if_positive(axes, answers)
    axes.xaxis.set_major_formatter(lambda number, _: _in_units(number))
    name = "parameters" if cost == "parameters" else result.settings["bins"][0]["cost"]
    axes.set(xlabel=name, ylabel=_fitness_labels(result)[-1])
    _finish(figure, axes, path)


def _fitness_labels(result: SearchResult) -> list[str]:
    """What was minimised; of a staged fitness, what each share of the tokens stands for, that of the answers last."""
    fitness = result.settings.get("fitness", {})
    labels = []
    for stage in fitness.get("stages", {"1.0": fitness}).values():
        name, steps = stage.get("name", "fitness"), stage.get("steps", 0)
        labels.append(f"{name} after {steps} steps" if steps else f"{name} before training")
    return labels


def _log_if_positive(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    if evaluations and min(evaluation.fitness for evaluation in evaluations) > 0:
        axes.set_yscale("log")
        _plain_log_ticks(axes)
