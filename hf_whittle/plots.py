"""Pictures of a search, of what a subnet keeps and of training curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from .files.atomic import atomic_path
from .search.algorithm import Evaluation
from .search.result import SearchResult
from .subnet import SubnetConfig, indices

_COLOURS = {"sample": "#9aa5b1", "mutation": "#2f6fde", "crossover": "#e07b39", "answer": "#b83280"}
_OTHER_COLOUR = "#3f9b6c"
_KEPT = ListedColormap(["#e5e7eb", "#2f6fde"])
_LINES = ("#2f6fde", "#6b7280", "#e07b39")


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


def plot_architecture(subnet: SubnetConfig, supernet: Mapping[str, int], path: str | Path) -> None:
    """Draw which heads, neurons and channels of each layer a subnet keeps, into a PNG file.

    Args:
        subnet (`SubnetConfig`): the subnet.
        supernet (`Mapping[str, int]`): sizes of the super-network, as `SearchSpace.to_dict()["supernet"]` holds them.
        path (`str` or `Path`): the file.
    """
    layers = supernet["num_hidden_layers"]
    positions = {layer: position for position, layer in enumerate(subnet.layers)}
    panels = {
        "attention heads": ("num_attention_heads", [subnet.num_attention_heads[p] for p in positions.values()]),
        "MLP neurons": ("intermediate_size", [subnet.intermediate_size[p] for p in positions.values()]),
        "channels": ("hidden_size", [subnet.hidden_size] * len(positions)),
    }
    figure = Figure(figsize=(7.2, 1.3 + 0.22 * layers), layout="constrained")
    for axes, (title, (name, kept)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        image = np.zeros((layers, supernet[name]))
        for layer, entry in zip(positions, kept, strict=True):
            image[layer, list(indices(entry))] = 1
        axes.imshow(
            image, aspect="auto", interpolation="nearest", cmap=_KEPT, vmin=0, vmax=1,
            extent=(0, supernet[name], layers - 0.5, -0.5),
        )  # fmt: skip
        axes.hlines(np.arange(layers - 1) + 0.5, 0, supernet[name], color="white", linewidth=1.5)
        axes.set(xlabel=f"{title}, of {supernet[name]:,}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel("layer")
    figure.suptitle("kept of the super-network", fontsize="medium", color="#374151")
    _save(figure, path)


def plot_training(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, target: float | None = None
) -> None:
    """Draw perplexity over tokens into a PNG file.

    Args:
        curves (`Mapping[str, Sequence[tuple[float, float]]]`): `(tokens, perplexity)` points of each run, by name.
        path (`str` or `Path`): the file.
        target (`float`, *optional*): a perplexity to mark with a line.
    """
    figure, axes = _axes()
    for (name, points), colour in zip(curves.items(), _LINES, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.8, marker=".", markersize=4)
    if target is not None:
        axes.axhline(target, color="#9aa5b1", linestyle=":", label=f"baseline's final perplexity, {target:.4g}")
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    axes.xaxis.set_major_formatter(lambda tokens, _: _in_units(tokens))
    axes.set(xlabel="training tokens", ylabel="held-out perplexity (log scale)")
    _finish(figure, axes, path)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    return figure, figure.add_subplot()


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


def _plain_log_ticks(axes: Axes) -> None:
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


def _finish(figure: Figure, axes: Axes, path: str | Path) -> None:
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png", metadata={"Software": None})
