"""Pictures of a search."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import finish, in_units, new_axes, use_plain_log_ticks
from .algorithm import Evaluation
from .wording import Scale, fitness_axes, origin_in_words, scales

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

    Evaluations on a share of the tokens, or by an earlier stage of a staged fitness, do not compare with the answers:
    each share has a panel of its own. Evaluations outside of the bins are left out.
    """
    groups = scales(result.evaluations, result.settings)
    heights = [2.0, *(0.9 for _ in groups[1:])]
    figure = Figure(figsize=(7.2, 2.2 + sum(heights)), layout="constrained")
    panels = [*figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]]
    for axes, scale in zip(panels, groups, strict=True):
        _scatter(axes, scale)
        if len(groups) > 1:
            axes.set_title(_title(scale, groups), loc="left", fontsize="small", color="#4b5563")
    curve = [(i, lowest) for i, lowest in enumerate(result.best_so_far(), 1) if math.isfinite(lowest)]
    if curve:
        panels[0].step(*zip(*curve, strict=True), where="post", color="#111827", label="best so far")
    for axes, scale in zip(panels, groups, strict=True):
        _log_if_positive(axes, [evaluation for _, evaluation in scale.numbered], most=7 if axes is panels[0] else 3)
    panels[0].set_ylabel(groups[0].axis)
    panels[-1].set_xlabel("subnets evaluated, in order")
    finish(figure, panels, path)


def _scatter(axes: Axes, scale: Scale) -> None:
    """Draw the evaluations of a share."""
    for origin in dict.fromkeys(evaluation.origin for _, evaluation in scale.numbered):
        shown = [(i, e.fitness) for i, e in scale.numbered if e.origin == origin]
        is_answer = scale.share == 1
        x, y = zip(*shown, strict=True)
        axes.scatter(
            x, y, s=12 if is_answer else 6, color=_COLORS.get(origin, _OTHER_COLOR),
            alpha=0.8 if is_answer else 0.5, linewidths=0, label=origin_in_words(origin),
        )  # fmt: skip


def _title(scale: Scale, groups: Sequence[Scale]) -> str:
    """The share of a panel, and what its evaluations compare with."""
    is_staged = len({group.axis for group in groups}) > 1
    what = scale.axis if is_staged else f"on {scale.tokens}"
    return f"{what}: {'the best of these is the answer' if scale.share == 1 else 'these compare only with each other'}"


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
        s=9, color=_COLORS["sample"], alpha=0.6, linewidths=0, label="subnet",
    )  # fmt: skip
    axes.step(
        [getattr(answer, cost) for answer in front],
        [answer.fitness for answer in front],
        where="post", color=_COLORS["mutation"], marker="o", markersize=4, label="Pareto front",
    )  # fmt: skip
    _log_if_positive(axes, answers)
    axes.xaxis.set_major_formatter(lambda number, _: in_units(number))
    name = "parameters" if cost == "parameters" else result.settings["bins"][0]["cost"]
    axes.set(xlabel=name, ylabel=fitness_axes(result.settings)[1.0])
    finish(figure, [axes], path)


def _log_if_positive(axes: Axes, evaluations: Sequence[Evaluation], most: int = 7) -> None:
    if evaluations and min(evaluation.fitness for evaluation in evaluations) > 0:
        axes.set_yscale("log")
        use_plain_log_ticks(axes, most)
