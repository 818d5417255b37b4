"""Figures of trainings: perplexity over tokens and over FLOPs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..hub.wording import as_number
from ..record.facts import CurvePoint, TrainingFacts
from .folder import Run
from .look import HEIGHT, MUTED, Figure, color_of, escaped, label_of, log_axis, new_figure

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
                label = name if len(runs) == 1 else f"{run.name}: {name}"
                color = MUTED if len(runs) == 1 and name != "student" else color_of(index)
                curves.append(_curve(label, points, axis, color, is_student=name == "student"))
    if not curves:
        return None
    traces = [*curves, *_teachers(runs, furthest=max(x for curve in curves for x in curve.x))]
    perplexities = [y for trace in traces for y in trace.y]
    figure = new_figure(traces, height=HEIGHT + 18 * max(0, len(traces) - 3))
    figure.update_xaxes(title_text=axis, rangemode="tozero")
    figure.update_yaxes(title_text="held-out perplexity", **log_axis(perplexities))
    return figure


def _curve(label: str, points: list[tuple[float, CurvePoint]], axis: str, color: str, *, is_student: bool) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[x for x, _ in points], y=[point.perplexity for _, point in points], name=escaped(label),
        mode="lines+markers", marker={"size": 5}, cliponaxis=False,
        line={"color": color, "dash": "solid" if is_student else "dot", "width": 2.5 if is_student else 2},
        hovertext=[_hover(label, x, point, axis) for x, point in points], hoverinfo="text",
    )  # fmt: skip


def _hover(label: str, x: float, point: CurvePoint, axis: str) -> str:
    lines = [label, f"step {point.step:,}"]
    if point.tokens is not None:
        lines.append(f"{point.tokens:,} training tokens")
    if axis == "FLOPs":
        lines.append(f"{as_number(x)} FLOPs")
    return label_of([*lines, f"perplexity {point.perplexity:.4g}"])


def _teachers(runs: Sequence[Run], furthest: float) -> Iterator[Any]:
    """A line at the perplexity of each teacher that has the student's vocabulary; runs with the same one share it."""
    import plotly.graph_objects as go

    of_runs: dict[float, list[str]] = {}
    for run in runs:
        vocabulary = run.results.vocabulary
        if vocabulary is not None and vocabulary.size != vocabulary.teacher_size:
            continue  # its perplexity is of other tokens
        if run.results.teacher is not None and run.results.teacher.perplexity is not None:
            of_runs.setdefault(run.results.teacher.perplexity, []).append(run.name)
    for perplexity, names in of_runs.items():
        label = f"teacher, {as_number(perplexity)}"
        label = label if len(of_runs) == 1 else f"{', '.join(names)}: {label}"
        line = {"color": MUTED, "dash": "dash", "width": 1}
        y = [perplexity, perplexity]
        yield go.Scatter(x=[0, furthest], y=y, name=escaped(label), mode="lines", line=line, hoverinfo="name")
