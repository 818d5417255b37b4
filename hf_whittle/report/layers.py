"""Figures by layer: what a student keeps, and what healing restored."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..architectures.dimensions import LAYERS
from ..healing.config import HealingReport
from ..subnet import SubnetConfig, count, indices
from .look import RUN_COLORS, Figure, dress, escaped, label_of, new_figure

_CELLS = 96  # cells of a row at most, each the share kept of a few entries
_SCALE = [[0, "rgba(134,142,150,0.18)"], [1, RUN_COLORS[0]]]


def architecture_figure(subnet: SubnetConfig, supernet: Mapping[str, Any], anchor: str, title: str) -> Figure:
    """Entries of each dimension that a subnet keeps, layer by layer."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    layers = supernet[LAYERS.name]
    drawn = [d for d in subnet.dimensions if d is not LAYERS and (d.per_layer or d.name in supernet)]
    drawn.sort(key=lambda dimension: not dimension.per_layer)
    titles = [f"{d.label}<br>of {supernet[d.name]:,}" for d in drawn]
    figure = make_subplots(1, len(drawn), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    for column, dimension in enumerate(drawn, 1):
        size = supernet[dimension.name]
        kept = subnet.kept(dimension) if dimension.per_layer else [subnet.kept(dimension)] * len(subnet.layers)
        by_layer = dict(zip(subnet.layers, kept, strict=True))
        cells = min(size, _CELLS)
        rows = [
            _shares(indices(by_layer[layer]), size, cells) if layer in by_layer else [0.0] * cells
            for layer in range(layers)
        ]
        labels = [_label(layer, by_layer, dimension.label, size) for layer in range(layers)]
        figure.add_trace(
            go.Heatmap(
                z=rows, x0=size / cells / 2, dx=size / cells, y0=0, dy=1, zmin=0, zmax=1, colorscale=_SCALE,
                showscale=False, ygap=2, hovertext=[[label] * cells for label in labels], hoverinfo="text",
            ),
            1, column,
        )  # fmt: skip
    dress(figure, 100 + max(24, min(44, 700 // layers)) * layers, margin={"t": 42})
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(showgrid=False, nticks=4)
    figure.update_yaxes(showgrid=False, autorange="reversed", dtick=max(1, layers // 16))
    figure.update_yaxes(title_text="layer of the super-network", col=1)
    caption = "Coloured: what the student keeps of the super-network. An empty row is a layer left out."
    return Figure(anchor, figure, caption, title)


def _shares(kept: Sequence[int], size: int, cells: int) -> list[float]:
    """Share of the entries kept in each of `cells` equal parts of a dimension."""
    starts = [-(-cell * size // cells) for cell in range(cells + 1)]
    found = [0] * cells
    for entry in kept:
        found[entry * cells // size] += 1
    return [part / (end - start) for part, (start, end) in zip(found, pairwise(starts), strict=True)]


def _label(layer: int, kept: Mapping[int, Any], label: str, size: int) -> str:
    if layer not in kept:
        return f"layer {layer}: left out"
    return f"layer {layer}: {count(kept[layer]):,} of {size:,} {label}"


def architecture_rows(subnet: SubnetConfig) -> list[tuple[str, ...]]:
    """A table of what each layer keeps; the first row names the columns."""
    columns = subnet.shape.per_layer
    rows: list[tuple[str, ...]] = [("layer", "extracted from layer", *(d.label for d in columns))]
    sizes = [[f"{count(kept):,}" for kept in subnet.kept(d)] for d in columns]
    return [*rows, *zip(map(str, range(len(subnet.layers))), map(str, subnet.layers), *sizes, strict=True)]


def healing_figure(report: HealingReport, anchor: str, title: str) -> Figure | None:
    """Error of each regression of healing before and after it, by layer; `None` without regressions."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for fit in report.fits:
        parts.setdefault(_part(str(fit["weights"])), []).append(fit)
    traces = [
        trace
        for place, (part, fits) in enumerate(parts.items())
        for trace in _before_and_after(part, fits, RUN_COLORS[place % len(RUN_COLORS)])
    ]
    if not traces:
        return None
    order = list(dict.fromkeys(_place(str(fit["weights"])) for fit in report.fits))
    order.sort(key=lambda place: (not place.isdecimal(), int(place) if place.isdecimal() else 0))
    figure = new_figure(
        traces,
        xaxis={
            "title": "layer of the super-network",
            "type": "category",
            "categoryorder": "array",
            "categoryarray": order,
        },
    )
    figure.update_yaxes(title_text="relative squared error", rangemode="tozero")
    caption = (
        "Squared error of what the student's weights compute, relative to the super-network, on held-out text: hollow "
        "as sliced, filled after the linear fit."
    )
    return Figure(anchor, figure, caption, title)


def _before_and_after(part: str, fits: Sequence[Mapping[str, Any]], color: str) -> list[Any]:
    """Errors of the regressions of a part of all layers."""
    import plotly.graph_objects as go

    x, hover = [_place(str(fit["weights"])) for fit in fits], [_fit_label(fit) for fit in fits]
    shared = {"x": x, "hovertext": hover, "hoverinfo": "text", "legendgroup": escaped(part), "name": escaped(part)}
    hollow = {"color": color, "symbol": "circle-open", "size": 9}
    before, after = ([fit[name] for fit in fits] for name in ("before", "after"))
    return [
        go.Scatter(y=before, mode="markers", marker=hollow, showlegend=False, **shared),
        go.Scatter(y=after, mode="lines+markers", marker={"size": 8}, line={"color": color, "width": 1.5}, **shared),
    ]


_LAYER = re.compile(r"(?:^|[\w.]*\.)(\d+)\.")


def _place(weights: str) -> str:
    """Layer of weights by their name; `head` for those of no layer."""
    found = _LAYER.match(weights)
    return found[1] if found else "head"


def _part(weights: str) -> str:
    """Name of weights within their layer."""
    return " and ".join(_LAYER.sub("", name) for name in weights.split(" and "))


def _fit_label(fit: Mapping[str, Any]) -> str:
    strength = "none was better" if fit.get("ridge") is None else f"{fit['ridge']:.3g}"
    lines = [
        str(fit["weights"]),
        f"error {fit['before']:.4g} as sliced, {fit['after']:.4g} healed",
        f"ridge {strength}",
    ]
    return label_of(lines)
