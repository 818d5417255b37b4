"""Costs of runs by stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from .folder import Run
from .look import MUTED, RUN_COLORS, Figure, escaped, new_figure

_COLORS = {
    "search": RUN_COLORS[3],
    "healing": RUN_COLORS[2],
    "student's training": RUN_COLORS[0],
    "teacher's forward passes": RUN_COLORS[1],
    "random initialization's training": MUTED,
}


@dataclass(frozen=True)
class StageCost:
    """Cost of a stage, as far as it is known.

    Args:
        stage (`str`): its name.
        tokens, flops (`int`, *optional*): tokens read, FLOPs.
        seconds (`float`, *optional*): time.
    """

    stage: str
    tokens: int | None = None
    flops: int | None = None
    seconds: float | None = None


def stage_costs(run: Run) -> list[StageCost]:
    """Cost of each stage of a run, in their order."""
    results, search, costs = run.results, run.search_facts, []
    if search is not None:
        costs.append(StageCost("search", search.tokens, search.flops))
    if results.healing is not None:
        costs.append(StageCost("healing", results.healing.tokens, results.healing.flops))
    for name, training in (("student's", results.student), ("random initialization's", results.baseline)):
        if training is None or not training.tokens:
            continue
        each = training.flops_per_token
        flops = None if each is None else training.tokens * each.student
        costs.append(StageCost(f"{name} training", training.tokens, flops, training.seconds))
        if each is not None and each.teacher:
            costs.append(StageCost("teacher's forward passes", training.tokens, training.tokens * each.teacher))
    return costs


def costs_figure(runs: Sequence[Run]) -> Figure | None:
    """FLOPs of runs by stage, and of what it took to match the baseline; `None` if nothing is known."""
    import plotly.graph_objects as go

    bars = [bar for run in runs for bar in _bars(run, "" if len(runs) == 1 else f"{run.name}: ")]
    if not bars:
        return None
    names = list(dict.fromkeys(name for name, _ in bars))
    traces = []
    for stage, color in _COLORS.items():
        of_stage = {escaped(name): costs[stage] for name, costs in bars if costs.get(stage)}
        if of_stage:
            hover = f"{stage}: %{{x:.3s}}FLOPs<extra></extra>"
            bar = go.Bar(y=[*of_stage], x=[*of_stage.values()], name=stage, orientation="h", hovertemplate=hover)
            bar.marker.color = color
            traces.append(bar)
    figure = new_figure(traces, height=150 + 42 * len(names), barmode="stack", bargap=0.35)
    figure.update_layout(legend={"traceorder": "normal"}, xaxis={"title_text": "FLOPs"})
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=[escaped(name) for name in reversed(names)]
    )
    caption = "FLOPs by stage. To match is to reach the final perplexity of the random initialization."
    if any(cost.flops is None for run in runs for cost in stage_costs(run)):
        caption += " Stages whose FLOPs are not recorded are missing."
    return Figure("costs-flops", figure, caption)


def _bars(run: Run, prefix: str) -> list[tuple[str, dict[str, int]]]:
    """For each bar its name, and FLOPs by stage."""
    known = {cost.stage: cost.flops for cost in stage_costs(run) if cost.flops}
    of_baseline = {stage: flops for stage, flops in known.items() if stage.startswith("random")}
    of_student = {stage: flops for stage, flops in known.items() if stage not in of_baseline}
    bars = [(f"{prefix}student", of_student), (f"{prefix}random initialization", of_baseline)]
    match = run.results.to_match
    if match is not None and match.student_flops is not None:
        flops = match.student_flops
        to_match = {
            "search": flops.search, "healing": flops.healing or 0, "student's training": flops.training,
            "teacher's forward passes": flops.teacher,
        }  # fmt: skip
        bars.insert(1, (f"{prefix}student, to match", to_match))
    return [(name, costs) for name, costs in bars if costs]
