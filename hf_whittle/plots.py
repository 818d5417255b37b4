"""Pictures of subnets and of training curves, and the look that all pictures share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from .architectures.dimensions import HEADS, LAYERS, NEURONS
from .files.atomic import atomic_path
from .subnet import SubnetConfig, indices

_KEPT = ListedColormap(["#e5e7eb", "#2f6fde"])
_LINES = ("#2f6fde", "#6b7280", "#e07b39")


_TITLES = {HEADS: "attention heads", NEURONS: "MLP neurons"}
"""Titles of dimensions whose labels would not do."""


def plot_architecture(subnet: SubnetConfig, supernet: Mapping[str, int], path: str | Path) -> None:
    """Draw what each layer of a subnet keeps of every dimension that the subnet names, into a PNG file.

    Args:
        subnet (`SubnetConfig`): the subnet.
        supernet (`Mapping[str, int]`): sizes of the super-network, as in `SearchSpace.to_dict()["supernet"]`.
        path (`str` or `Path`): the file.
    """
    layers = supernet[LAYERS.name]
    shared = [dimension for dimension in subnet.dimensions if not dimension.per_layer and dimension is not LAYERS]
    drawn = [*subnet.shape.per_layer, *(dimension for dimension in shared if dimension.name in supernet)]
    figure = Figure(figsize=(2.4 * len(drawn), 1.3 + 0.22 * layers), layout="constrained")
    for axes, dimension in zip(figure.subplots(1, len(drawn), sharey=True), drawn, strict=True):
        name, title = dimension.name, _TITLES.get(dimension, dimension.label)
        kept = subnet.kept(dimension) if dimension.per_layer else [subnet.kept(dimension)] * len(subnet.layers)
        image = np.zeros((layers, supernet[name]))
        for layer, entry in zip(subnet.layers, kept, strict=True):
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
    figure, axes = new_axes()
    for (name, points), color in zip(curves.items(), _LINES, strict=False):
        axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=1.8, marker=".", markersize=4)
    if target is not None:
        axes.axhline(target, color="#9aa5b1", linestyle=":", label=f"baseline's final perplexity, {target:.4g}")
    axes.set_yscale("log")
    use_plain_log_ticks(axes)
    axes.xaxis.set_major_formatter(lambda tokens, _: in_units(tokens))
    axes.set(xlabel="training tokens", ylabel="held-out perplexity (log scale)")
    finish(figure, [axes], path)


def new_axes() -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    return figure, figure.add_subplot()


def use_plain_log_ticks(axes: Axes, most: int = 7) -> None:
    """Label a logarithmic y-axis with plain numbers: a few round ones, or 1, 2 and 5 in each power of ten."""
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    low, high = axes.get_ylim()
    is_narrow = high < 5 * low
    axes.yaxis.set_major_locator(
        MaxNLocator(most, steps=[1, 2, 5, 10]) if is_narrow else LogLocator(subs=(1, 2, 5), numticks=2 * most)
    )
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(NullFormatter())
    if is_narrow:
        axes.yaxis.set_minor_locator(NullLocator())


def in_units(number: float) -> str:
    """A number with `B`, `M` or `k` for billions, millions and thousands."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def finish(figure: Figure, panels: Sequence[Axes], path: str | Path) -> None:
    """Add grids, and a legend of all panels above them, and write a PNG file."""
    entries: dict[str, Artist] = {}
    for axes in panels:
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize="small"
    )
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png", metadata={"Software": None})
