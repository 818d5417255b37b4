"""Figures of searches: every candidate, and fitness against the cost that a bin bounds."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..hub.wording import as_number
from ..search.algorithm import Evaluation
from ..search.result import SearchResult
from ..search.wording import ALL, Scale, fitness_axes, origin_in_words, scales
from ..subnet import SubnetConfig
from .folder import Run
from .look import MUTED, RUN_COLORS, STRONG, Figure, color_of, dress, escaped, label_of, log_axis, new_figure

_ORIGIN_COLORS = {"sample": MUTED, "mutation": RUN_COLORS[0], "crossover": RUN_COLORS[1], "answer": RUN_COLORS[3]}
_OUTSIDE = "outside of the bin"
_ANSWERS, _OTHERS = 260, 130  # pixels of a panel
_MANY = 600  # points of a panel that are drawn smaller


def search_figure(search: SearchResult, anchor: str) -> Figure:
    """Fitness of every candidate in the order of the search, a panel for each share of the tokens."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    groups = scales(search.evaluations, search.settings, in_bins=False)
    heights = [_ANSWERS, *(_OTHERS for _ in groups[1:])]
    total = sum(heights) + 70 * len(groups)
    figure = make_subplots(
        len(groups), 1, shared_xaxes=True, row_heights=heights, vertical_spacing=46 / total if groups[1:] else 0,
        subplot_titles=[_panel_title(scale, groups) for scale in groups],
    )  # fmt: skip
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    known: set[str] = set()
    for row, scale in enumerate(groups, 1):
        for trace in _origins(scale, known):
            figure.add_trace(trace, row, 1)
        shown = [e.fitness for _, e in scale.numbered if e.bins]
        figure.update_yaxes(row=row, **log_axis(shown))
    curve = [(i, lowest) for i, lowest in enumerate(search.best_so_far(), 1) if math.isfinite(lowest)]
    if curve:
        x, y = zip(*curve, strict=True)
        line = {"shape": "hv", "color": STRONG, "width": 2}
        figure.add_trace(go.Scatter(x=x, y=y, name="best so far", mode="lines", line=line, hoverinfo="skip"), 1, 1)
    dress(figure, total)
    figure.update_layout(legend={"y": 1 + 26 / total})
    figure.update_yaxes(title_text=escaped(groups[0].axis), row=1)
    figure.update_xaxes(title_text="subnets evaluated, in order", row=len(groups))
    return Figure(anchor, figure, _caption(search, groups))


def _panel_title(scale: Scale, groups: Sequence[Scale]) -> str:
    """The share of a panel; of a staged fitness, the stage."""
    if len(groups) == 1:
        return ""
    is_staged = len({group.axis for group in groups}) > 1
    what = f"<b>{escaped(scale.axis) if is_staged else f'on {scale.tokens}'}</b>"
    return what if scale.share == 1 else f"{what}, a scale of its own"


def _caption(search: SearchResult, groups: Sequence[Scale]) -> str:
    words = [
        "Each point is a candidate: hover over it, or tap it, to see its subnet. Click an entry of the legend to hide "
        "or show its points."
    ]
    if len(groups) > 1:
        words.append(
            "Candidates on a part of the tokens, or of an earlier stage, are hollow and have panels of their own: they "
            "compare only with others of their panel. The best of the first panel is the answer."
        )
    outside = sum(1 for each in search.evaluations if not each.bins)
    if outside:
        words.append(f"{outside:,} candidates outside of the bin, which the search learned from, are hidden at first.")
    failed = sum(1 for each in search.evaluations if not math.isfinite(each.fitness))
    if failed:
        words.append(f"{failed:,} candidates of infinite fitness are not drawn.")
    return " ".join(words)


def _origins(scale: Scale, known: set[str]) -> Iterator[Any]:
    """Candidates of a share by their origin; an origin has an entry in the legend once."""
    import plotly.graph_objects as go

    kinds = {(e.origin if e.bins else _OUTSIDE): None for _, e in scale.numbered}
    size = (8 if scale.share == 1 else 6) - (3 if len(scale.numbered) > _MANY else 0)
    for kind in kinds:
        shown = [(i, e) for i, e in scale.numbered if (e.origin if e.bins else _OUTSIDE) == kind]
        is_answer, is_outside = scale.share == 1, kind == _OUTSIDE
        color = MUTED if is_outside else _ORIGIN_COLORS.get(kind, RUN_COLORS[2])
        yield go.Scatter(
            x=[i for i, _ in shown], y=[e.fitness for _, e in shown], mode="markers",
            name=escaped(origin_in_words(kind)), legendgroup=escaped(kind), showlegend=kind not in known,
            visible="legendonly" if is_outside else True,
            marker={
                "color": color, "size": size, "line": {"color": color, "width": 1.2},
                "symbol": "x-thin" if is_outside else "circle" if is_answer else "circle-open",
            },
            hovertext=[hover_of(e, scale, i) for i, e in shown], hoverinfo="text",
        )  # fmt: skip
        known.add(kind)


def hover_of(evaluation: Evaluation, scale: Scale, number: int) -> str:
    """A candidate in lines of a hover label."""
    lines = [
        f"candidate {number:,}, {origin_in_words(evaluation.origin)}",
        f"{scale.axis}: {evaluation.fitness:.5g}",
        f"evaluated on {evaluation.tokens:,} tokens" + (f", {scale.tokens}" if scale.tokens != ALL else ""),
        f"{evaluation.parameters:,} parameters",
        *subnet_lines(evaluation.subnet),
    ]
    if scale.share != 1:
        lines.append("comparable only within its panel")
    if not evaluation.bins:
        lines.append(_OUTSIDE)
    return label_of(lines)


def subnet_lines(subnet: SubnetConfig) -> list[str]:
    """Sizes of a subnet in lines, those of layers side by side."""
    lines = [f"layers: {len(subnet.layers)} ({_ranges(subnet.layers)})"]
    for dimension in subnet.shape.dimensions:
        size = getattr(subnet.shape, dimension.name)
        sizes = (size,) if isinstance(size, int) else size
        equal = len(set(sizes)) == 1
        lines.append(f"{dimension.label}: {sizes[0] if equal else ' '.join(map(str, sizes))}")
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words, such as `0-3, 5`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in found)


def pareto_figures(searches: Sequence[tuple[Run, SearchResult]]) -> list[Figure]:
    """Fitness of answers against the cost that the bin bounds; searches of the same fitness and cost share a figure."""
    grouped: dict[tuple[str, str, str], list[tuple[int, Run, SearchResult]]] = {}
    for index, (run, search) in enumerate(searches):
        fitness = search.settings.get("fitness", {})
        of_data = "/".join(str(fitness.get(name)) for name in ("data", "tokens", "model"))
        key = (fitness_axes(search.settings)[1.0], search.settings["bins"][0]["cost"], of_data)
        grouped.setdefault(key, []).append((index, run, search))
    return [
        _pareto(f"pareto-{place}", axis, cost, members, "" if len(searches) == 1 else _names(members))
        for place, ((axis, cost, _), members) in enumerate(grouped.items(), 1)
    ]


def _names(members: Sequence[tuple[int, Run, SearchResult]]) -> str:
    return ", ".join(run.name for _, run, _ in members)


def _pareto(anchor: str, axis: str, cost: str, members: Sequence[tuple[int, Run, SearchResult]], title: str) -> Figure:
    import plotly.graph_objects as go

    figure = new_figure(xaxis={"title": escaped(cost)}, yaxis={"title": escaped(axis)})
    values: list[float] = []
    for index, run, search in members:
        prefix = "" if len(members) == 1 else f"{run.name}: "
        (scale,) = [scale for scale in scales(search.evaluations, search.settings) if scale.share == 1]
        front = {id(each) for each in search.pareto_front("cost")}
        on = sorted(((i, e) for i, e in scale.numbered if id(e) in front), key=lambda each: each[1].cost)
        off = [(i, e) for i, e in scale.numbered if id(e) not in front]
        values += [e.fitness for _, e in scale.numbered]
        for name, shown, how in (
            ("other candidates", off, {"mode": "markers", "marker": {"size": 6}, "opacity": 0.45}),
            ("Pareto front", on, {"mode": "lines+markers", "marker": {"size": 8}, "line": {"shape": "hv"}}),
        ):
            trace = go.Scatter(
                x=[e.cost for _, e in shown], y=[e.fitness for _, e in shown], name=escaped(prefix + name),
                hovertext=[hover_of(e, scale, i) for i, e in shown], hoverinfo="text", **how,
            )  # fmt: skip
            trace.marker.color = MUTED if name != "Pareto front" and len(members) == 1 else color_of(index)
            figure.add_trace(trace)
    figure.update_yaxes(**log_axis(values))
    caption = (
        f"Candidates evaluated on all tokens, by {cost} and fitness; lower is better. No candidate has both lower than "
        "one on the front."
    )
    return Figure(anchor, figure, caption, title)


def search_rows(run: Run) -> list[tuple[str, str]]:
    """Facts of a search, by name."""
    facts = run.search_facts
    if facts is None:
        return []
    space = f"{'fine-grained' if facts.space.granularity == 'fine' else facts.space.granularity}, "
    space += "layer-wise" if facts.space.layer_wise else "uniform"
    if facts.space.importance:
        space += f", entries chosen by {facts.space.importance} importance"
    bins = [f"{as_number(bin.low)} to {as_number(bin.high)} {bin.cost}" for bin in facts.bins]
    return [
        ("algorithm", facts.algorithm if facts.seed is None else f"{facts.algorithm}, seed {facts.seed}"),
        ("search space", space),
        ("bin" if len(bins) == 1 else "bins", "; ".join(bins)),
        ("fitness", f"{facts.fitness.name}, {as_number(facts.fitness.value)} for the best subnet"),
        ("candidates", f"{as_number(facts.evaluations)}, on at most {as_number(facts.tokens_per_evaluation)} tokens"),
        ("tokens read", as_number(facts.tokens)),
        ("FLOPs", as_number(facts.flops)),
        *([("best subnet as sliced", f"perplexity {as_number(facts.perplexity)}")] if facts.perplexity else []),
    ]
