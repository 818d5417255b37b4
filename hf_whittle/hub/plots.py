"""Pictures of a search and of training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ..files import atomic_path
from ..search.result import SearchResult

_COLOURS = {"sample": "#9aa5b1", "mutation": "#2f6fde", "crossover": "#e07b39"}
_OTHER_COLOUR = "#3f9b6c"
_LINES = ("#2f6fde", "#6b7280", "#e07b39")


def plot_search(result: SearchResult, path: str | Path, fitness_name: str = "perplexity") -> None:
    """Draw the fitness of every candidate in the order of evaluation, and the best so far, into a PNG file."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for origin in dict.fromkeys(e.origin for e in result.evaluations):
        colour = _COLOURS.get(origin, _OTHER_COLOUR)
        points = [(i, e.fitness) for i, e in enumerate(result.evaluations, 1) if e.origin == origin]
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=9, color=colour, alpha=0.7, label=f"by {origin}", linewidths=0)
    axes.step(
        range(1, len(result.evaluations) + 1), result.best_so_far(), where="post", color="#111827", label="best so far"
    )
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    axes.set(xlabel="subnets evaluated", ylabel=f"{fitness_name} before training (log scale)")
    _finish(figure, axes, path)


def plot_training(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, target: float | None = None
) -> None:
    """Draw perplexity over tokens into a PNG file.

    Args:
        curves (`Mapping[str, Sequence[tuple[float, float]]]`): `(tokens, perplexity)` points of each run, by name.
        path (`str` or `Path`): the file.
        target (`float`, *optional*): a perplexity to mark with a line.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(curves.items(), _LINES, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.8, marker=".", markersize=4)
    if target is not None:
        axes.axhline(target, color="#9aa5b1", linestyle=":", label=f"baseline's final perplexity, {target:.4g}")
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    axes.xaxis.set_major_formatter(lambda tokens, _: _in_units(tokens))
    axes.set(xlabel="training tokens", ylabel="held-out perplexity (log scale)")
    _finish(figure, axes, path)


def _plain_log_ticks(axes) -> None:
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.yaxis.set_major_formatter(formatter)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(formatter if high < 30 * low else NullFormatter())


def _in_units(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def _finish(figure: Figure, axes, path: str | Path) -> None:
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png", metadata={"Software": None})
