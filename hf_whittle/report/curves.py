"""Figures of trainings: perplexity over tokens and over FLOPs."""

from collections.abc import Callable, Sequence
from typing import Any

from ..hub.wording import as_number
from ..record.facts import CurvePoint, TrainingFacts
from .folder import Run
from .look import MUTED, RUN_COLORS, Figure, color_of, escaped, log_axis, new_figure

_Spent = Callable[[CurvePoint], float | None]


def curve_figures(runs: Sequence[Run]) -> list[Figure]:
    """Held-out perplexity of students and baselines over training tokens, and over all FLOPs they took."""
    over_tokens = _figure(runs, "training tokens", lambda run, training: lambda point: point.tokens)
    over_flops = _figure(runs, "FLOPs", _flops)
    found = []
    if over_tokens is not None:
        caption = "Held-out perplexity over training tokens. Click an entry of a legend to hide or show it."
        found.append(Figure("curves-tokens", over_tokens, caption))
    if over_flops is not None:
        caption = (
            "The same over FLOPs: a student starts with those of its search and healing, and counts its teacher's "
            "forward passes."
        )
        found.append(Figure("curves-flops", over_flops, caption))
    return found


def _flops(run: Run, training: TrainingFacts) -> _Spent:
    """FLOPs spent on a model until a point of its curve."""
    per_token, before = training.flops_per_token, 0
    if per_token is None:
        return lambda point: None
    if training is run.results.student:
        parts = (run.search_facts, run.results.healing)
        before = sum(part.flops or 0 for part in parts if part is not None)
    each = per_token.student + per_token.teacher
    return lambda point: None if point.tokens is None else before + point.tokens * each


def _figure(runs: Sequence[Run], axis: str, cost: Callable[[Run, TrainingFacts], _Spent]) -> Any:
    """Perplexity over a cost; `None` if no run knows it."""
    curves = []
    for index, run in enumerate(runs):
        for name, training in run.trainings.items():
            spent = cost(run, training)
            points = [(x, point) for point in training.curve if (x := spent(point)) is not None]
            if points:
                curves.append(_curve(run, name, points, axis, MUTED if len(runs) == 1 else color_of(index)))
    if not curves:
        return None
    furthest = max(x for curve in curves for x in curve.x)
    traces = [*curves, *(line for run in runs for line in _teacher(run, furthest))]
    if len(runs) > 1:
        for trace in traces:
            trace.name = f"{trace.legendgroup}: {trace.name}"
    perplexities = [y for trace in traces for y in trace.y]
    figure = new_figure(traces, xaxis={"title": axis}, yaxis={"title": "held-out perplexity", **log_axis(perplexities)})
    figure.update_xaxes(rangemode="tozero")
    return figure


def _curve(run: Run, name: str, points: list[tuple[float, CurvePoint]], axis: str, color: str) -> Any:
    import plotly.graph_objects as go

    is_student = name == "student"
    color = RUN_COLORS[0] if is_student and color == MUTED else color
    return go.Scatter(
        x=[x for x, _ in points], y=[point.perplexity for _, point in points],
        name=name, legendgroup=escaped(run.name), mode="lines+markers",
        line={"color": color, "dash": "solid" if is_student else "dot", "width": 2.5 if is_student else 2},
        marker={"size": 5}, cliponaxis=False, hoverinfo="text",
        hovertext=[_hover(run, name, x, point, axis) for x, point in points],
    )  # fmt: skip


def _hover(run: Run, name: str, x: float, point: CurvePoint, axis: str) -> str:
    lines = [f"{run.name}: {name}", f"step {point.step:,}"]
    if point.tokens is not None:
        lines.append(f"{point.tokens:,} training tokens")
    if axis == "FLOPs":
        lines.append(f"{as_number(x)} FLOPs")
    return "<br>".join(map(escaped, [*lines, f"perplexity {point.perplexity:.4g}"]))


def _teacher(run: Run, furthest: float) -> list[Any]:
    """A line at the perplexity of the teacher, if it is known."""
    import plotly.graph_objects as go

    teacher = run.results.teacher
    if teacher is None or teacher.perplexity is None:
        return []
    line = go.Scatter(
        x=[0, furthest], y=[teacher.perplexity] * 2, mode="lines", hoverinfo="name", legendgroup=escaped(run.name),
        name=f"teacher, {as_number(teacher.perplexity)}", line={"color": MUTED, "dash": "dash", "width": 1},
    )  # fmt: skip
    return [line]
