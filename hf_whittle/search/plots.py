"""Pictures of a search."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from ..plots import finish, in_units, new_axes, use_plain_log_ticks
from .algorithm import Evaluation

_COLORS = {"sample": "#9aa5b1", "mutation": "#2f6fde", "crossover": "#e07b39", "answer": "#b83280"}
_OTHER_COLOR = "#3f9b6c"


class Found(Protocol):
    """Evaluations of a search, as in a `SearchResult`, whose module imports this one."""

    @property
    def evaluations(self) -> Sequence[Evaluation]: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def answers(self) -> Sequence[Evaluation]: ...
    def best_so_far(self) -> Sequence[float]: ...
    def pareto_front(self, cost: Literal["parameters", "cost"] = "parameters") -> Sequence[Evaluation]: ...


def plot_search(result: Found, path: str | Path) -> None:
    """Draw the fitness of each evaluation in their order, and the best answer so far, into a PNG file.

    Evaluations on a share of the tokens, or by an earlier stage of a staged fitness, are small and pale; those outside
    of the bins are left out.
    """
    figure, axes = new_axes()
    numbered = [(i, e) for i, e in enumerate(result.evaluations, 1) if e.bins and math.isfinite(e.fitness)]
    for origin in dict.fromkeys(evaluation.origin for _, evaluation in numbered):
        color = _COLORS.get(origin, _OTHER_COLOR)
        shown = [(i, e) for i, e in numbered if e.origin == origin]
        axes.scatter(
            [i for i, _ in shown],
            [e.fitness for _, e in shown],
            s=[9 if e.share == 1 else 3 for _, e in shown],
            c=[to_rgba(color, 0.7 if e.share == 1 else 0.3) for _, e in shown],
            label=f"by {origin}",
            linewidths=0,
        )
    curve = [(i, lowest) for i, lowest in enumerate(result.best_so_far(), 1) if math.isfinite(lowest)]
    if curve:
        axes.step(*zip(*curve, strict=True), where="post", color="#111827", label="best so far")
    _log_if_positive(axes, [evaluation for _, evaluation in numbered])
    axes.set(xlabel="subnets evaluated", ylabel=", ".join(_fitness_labels(result)))
    finish(figure, axes, path)


def plot_pareto(result: Found, path: str | Path, cost: Literal["parameters", "cost"] = "parameters") -> None:
    """Draw fitness over cost for each answer, and the Pareto front, into a PNG file.

    Args:
        result (`SearchResult`): the search.
        path (`str` or `Path`): the file.
        cost (`str`, *optional*, defaults to `"parameters"`): parameters, or `"cost"` for the cost that the bins bound.
    """
    figure, axes = new_axes()
    answers = [answer for answer in result.answers if math.isfinite(answer.fitness)]
    front = [answer for answer in result.pareto_front(cost) if math.isfinite(answer.fitness)]
    axes.scatter(
        [getattr(answer, cost) for answer in answers],
        [answer.fitness for answer in answers],
        s=9, color=_COLORS["sample"], alpha=0.6, linewidths=0, label="subnets evaluated",
    )  # fmt: skip
    axes.step(
        [getattr(answer, cost) for answer in front],
        [answer.fitness for answer in front],
        where="post", color=_COLORS["mutation"], marker="o", markersize=4, label="Pareto front",
    )  # fmt: skip
    _log_if_positive(axes, answers)
    axes.xaxis.set_major_formatter(lambda number, _: in_units(number))
    name = "parameters" if cost == "parameters" else result.settings["bins"][0]["cost"]
    axes.set(xlabel=name, ylabel=_fitness_labels(result)[-1])
    finish(figure, axes, path)


def _fitness_labels(result: Found) -> list[str]:
    """The fitness in words; of a staged one each stage, that of the answers last."""
    fitness = result.settings.get("fitness", {})
    labels = []
    for stage in fitness.get("stages", {"1.0": fitness}).values():
        name, steps = stage.get("name", "fitness"), stage.get("steps", 0)
        labels.append(f"{name} after {steps} steps" if steps else f"{name} before training")
    return labels


def _log_if_positive(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    if evaluations and min(evaluation.fitness for evaluation in evaluations) > 0:
        axes.set_yscale("log")
        use_plain_log_ticks(axes)
