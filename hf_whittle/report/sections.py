"""Sections of a report, each from the facts that its runs have."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from ..hub.card import opening
from ..hub.wording import as_number, page_of
from ..record.facts import Environment, SourceFacts, VocabularyFacts
from .blocks import Code, Prose, Rows, Samples, Section, Table, Tiles
from .costs import costs_figure, stage_costs
from .curves import curve_figures
from .folder import Run
from .layers import architecture_figure, architecture_rows, healing_figure
from .searches import pareto_figures, search_figure, search_rows

_VERSIONS = ("hf_whittle", "transformers", "torch", "python")


def make_sections(runs: Sequence[Run]) -> list[Section]:
    """The sections of a page that have something to show."""
    made = [make(runs) for make in _SECTIONS]
    return [section for section in made if section.blocks]


def _number(value: float | None) -> str:
    return "" if value is None else as_number(value)


def _title(run: Run, runs: Sequence[Run]) -> str:
    """The heading of a part about one run of several."""
    return "" if len(runs) == 1 else run.name


def _link(text: str, address: str) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, text)


def _code(text: object) -> Markup:
    return Markup("<code>{}</code>").format(" ".join(str(text).split()))


def _checkpoint(source: SourceFacts) -> Markup:
    page = page_of(source)
    return _link(source.name, page) if page else _code(source.name)


def _headline(runs: Sequence[Run]) -> Section:
    section = Section("headline", "Headline")
    words: dict[str, Callable[..., str]] = {"code": _code, "checkpoint": _checkpoint, "link": _link}
    for run in runs:
        if run.results.student is not None or run.student.lineage.subnet is not None:
            section.blocks.append(Prose(Markup(opening(run.student, words)), _title(run, runs)))
    if len(runs) == 1 and len(tiles := _tiles(runs[0])) > 1:
        section.blocks.append(Tiles(tiles))
    rows = [row for run in runs for row in _models(run)]
    if rows:
        columns = ["run", "model", "parameters", "perplexity before training", "perplexity after", "training tokens"]
        if any(run.results.vocabulary for run in runs):
            columns[5:5] = ["bits per byte before", "bits per byte after"]
        else:
            rows = [(*row[:5], row[-1]) for row in rows]
        section.blocks.append(_without_run(Table(columns, rows, words=2), runs))
        section.blocks.append(Prose(_text(runs)))
        about = [(run.results.vocabulary, _title(run, runs)) for run in runs]
        section.blocks.extend(Prose(_of_vocabulary(facts), title) for facts, title in about if facts is not None)
    matches = [row for run in runs for row in _matches(run)]
    if matches:
        columns = ["run", "model", "perplexity to match", "training tokens", "FLOPs", "FLOPs ratio"]
        title = "Cost to reach the final perplexity of the random initialization"
        section.blocks.append(_without_run(Table(columns, matches, title, words=2), runs))
    return section


def _without_run(table: Table, runs: Sequence[Run]) -> Table:
    """The table without its first column, if there is but one run."""
    if len(runs) > 1:
        return table
    return Table(table.columns[1:], [row[1:] for row in table.rows], table.title, table.words - 1)


def _tiles(run: Run) -> list[tuple[str, str]]:
    results, student = run.results, run.results.student
    found: list[tuple[str, float | None]] = []
    if student is not None:
        found += [("parameters", student.parameters), ("perplexity", student.final_perplexity)]
    if results.teacher is not None:
        found.append(("teacher's perplexity", results.teacher.perplexity))
    if results.baseline is not None:
        found.append(("perplexity from random initialization", results.baseline.final_perplexity))
    if results.vocabulary is not None and student is not None:
        teacher = None if results.teacher is None else results.teacher.bits_per_byte
        found += [("bits per byte", student.final_bits_per_byte), ("teacher's bits per byte", teacher)]
    tiles = [(name, as_number(value)) for name, value in found if value is not None]
    if results.to_match is not None and results.to_match.flops_ratio is not None:
        tiles.append(("FLOPs ratio to match random initialization", f"{results.to_match.flops_ratio:.3g}"))
    return tiles


def _models(run: Run) -> list[tuple[str, ...]]:
    """For each model of a run its size, perplexities, bits per byte and training tokens."""
    names = {"student": "student", "random initialization": "same architecture, random initialization"}
    rows: list[tuple[str, ...]] = []
    for name, training in run.trainings.items():
        first = training.curve[0]
        after = training.final_perplexity if name == "student" else training.curve[-1].perplexity
        before = first.perplexity if first.step == 0 else None
        bits = (training.first_bits_per_byte, training.final_bits_per_byte)
        cells = map(_number, (training.parameters, before, after, *bits, training.tokens))
        rows.append((run.name, names[name], *cells))
    teacher = run.results.teacher
    if rows and teacher is not None and teacher.perplexity is not None:
        name = "teacher" if teacher.precision is None else f"teacher ({teacher.precision})"
        figures = map(_number, (teacher.parameters, None, teacher.perplexity, None, teacher.bits_per_byte, None))
        rows.append((run.name, name, *figures))
    return rows


def _of_vocabulary(facts: VocabularyFacts) -> str:
    """The vocabularies of student and teacher, and what compares between them."""
    return (
        f"The student and the random initialization have {facts.size:,} of the {facts.teacher_size:,} entries of the "
        f"teacher's vocabulary: {facts.tokens_per_byte:.4g} tokens for each byte of text, where the teacher has "
        f"{facts.teacher_tokens_per_byte:.4g}. Between different vocabularies, only bits per byte compare."
    )


def _text(runs: Sequence[Run]) -> str:
    """The text that perplexities are measured on, and whether those of several runs compare."""
    about = {_measured_on(run) for run in runs if run.trainings}
    words, (_, _, tokens) = "Perplexity on held-out text.", next(iter(about))
    if tokens is not None and len(about) == 1:
        words = f"Perplexity on {as_number(tokens)} held-out tokens that neither training nor the search saw."
    if len(about) > 1:
        words += " The runs differ in text, teacher or test tokens: their perplexities need not compare."
    if len({run.results.vocabulary.size for run in runs if run.results.vocabulary}) > 1:
        words += " The runs have different vocabularies: their perplexities do not compare, bits per byte do."
    return words


def _measured_on(run: Run) -> tuple[str | None, str | None, int | None]:
    """Name of the text and of the teacher, and number of test tokens, as far as they are known."""
    data, teacher = run.results.data, run.results.teacher
    text = None if data is None else data.in_words
    return (text, None, None) if teacher is None else (text, teacher.name, teacher.test_tokens)


def _matches(run: Run) -> list[tuple[str, ...]]:
    match = run.results.to_match
    if match is None:
        return []
    target, tokens, flops = map(_number, (match.perplexity, match.baseline_tokens, match.baseline_flops))
    baseline = (run.name, "random initialization", target, tokens, flops, "1")
    if match.student_flops is None:
        return [baseline, (run.name, "student", target, "not reached", "", "")]
    flops, ratio = _number(match.student_flops.total), "" if match.flops_ratio is None else f"{match.flops_ratio:.3g}"
    return [baseline, (run.name, "student", target, _number(match.student_tokens), flops, ratio)]


def _curves(runs: Sequence[Run]) -> Section:
    return Section("curves", "Training", list(curve_figures(runs)), is_paired=True)


def _search(runs: Sequence[Run]) -> Section:
    section = Section("search", "Search")
    for place, run in enumerate(runs, 1):
        if rows := search_rows(run):
            section.blocks.append(Rows(rows, _title(run, runs)))
        if run.search is not None and run.search.evaluations:
            section.blocks.append(search_figure(run.search, f"search-{place}"))
    return section


def _pareto(runs: Sequence[Run]) -> Section:
    searches = [(run, run.search) for run in runs if run.search is not None and run.search.answers]
    return Section("pareto", "Pareto fronts", [*pareto_figures(searches)])


def _layers(runs: Sequence[Run]) -> Section:
    section = Section("layers", "Architecture by layer")
    for place, run in enumerate(runs, 1):
        subnet, title = run.subnet, _title(run, runs)
        if subnet is None:
            continue
        supernet = {} if run.search is None else run.search.settings.get("space", {}).get("supernet", {})
        if supernet:
            section.blocks.append(architecture_figure(subnet, supernet, f"layers-{place}", title))
        columns, *rows = architecture_rows(subnet)
        section.blocks.append(Table(columns, rows, "" if supernet else title, words=0, folded="Show it as a table"))
    return section


def _healing(runs: Sequence[Run]) -> Section:
    section = Section("healing", "Healing by layer")
    for place, run in enumerate(runs, 1):
        healing, report, title = run.results.healing, run.student.lineage.healing, _title(run, runs)
        if healing is not None:
            kept = "" if healing.is_healed else " The healed weights were left out."
            words = (
                f"Linear fits on {as_number(healing.tokens)} tokens of training text. On "
                f"{as_number(healing.held_out_tokens)} other tokens of it, perplexity went from "
                f"{as_number(healing.perplexity_before)} as sliced to "
                f"{as_number(healing.perplexity_after)} healed.{kept}"
            )
            section.blocks.append(Prose(words, title))
        figure = (
            None if report is None else healing_figure(report, f"healing-{place}", title if healing is None else "")
        )
        if figure is not None:
            section.blocks.append(figure)
    return section


def _costs(runs: Sequence[Run]) -> Section:
    section = Section("costs", "Costs by stage")
    if (figure := costs_figure(runs)) is not None:
        section.blocks.append(figure)
    rows = [
        (
            run.name,
            cost.stage,
            _number(cost.tokens),
            _number(cost.flops),
            "" if cost.seconds is None else f"{cost.seconds:,.0f}",
        )
        for run in runs
        for cost in stage_costs(run)
    ]
    if rows:
        section.blocks.append(_without_run(Table(["run", "stage", "tokens", "FLOPs", "seconds"], rows, words=2), runs))
    return section


def _tasks(runs: Sequence[Run]) -> Section:
    rows = [
        (
            run.name, task.title, "" if task.shots is None else str(task.shots), task.metric,
            f"{task.value:.4g}" + ("" if task.error is None else f" ± {task.error:.2g}"),
        )
        for run in runs
        for task in run.student.tasks
    ]  # fmt: skip
    columns = ["run", "task", "shots", "metric", "value"]
    section = Section("tasks", "Tasks of the LM Evaluation Harness")
    if rows:
        section.blocks.append(_without_run(Table(columns, rows, words=2), runs))
    return section


def _samples(runs: Sequence[Run]) -> Section:
    found = [Samples(run.samples, _title(run, runs)) for run in runs if run.samples]
    return Section("samples", "Samples of text", [*found])


def _machine(runs: Sequence[Run]) -> Section:
    rows: list[tuple[str, ...]] = []
    for run in runs:
        stages: dict[Environment, list[str]] = {}
        for stage, training in (("student", run.results.student), ("random initialization", run.results.baseline)):
            if training is not None and training.environment is not None:
                stages.setdefault(training.environment, []).append(stage)
        if not stages and run.results.environment is not None:
            stages[run.results.environment] = [""]
        for environment, names in stages.items():
            versions = (getattr(environment, name) for name in _VERSIONS)
            rows.append((run.name, ", ".join(names), *versions, environment.hardware))
    section = Section("environment", "Environment")
    if rows:
        columns = ["run", "training of", "hf_whittle", "transformers", "torch", "Python", "hardware"]
        section.blocks.append(_without_run(Table(columns, rows, words=7), runs))
    return section


def _recipe(runs: Sequence[Run]) -> Section:
    recipes = {run.name: run.recipe for run in runs if run.recipe is not None}
    section = Section("recipe", "Recipe" if len(recipes) == 1 else "Recipes")
    if len(recipes) > 1:
        rows = _differences([yaml.safe_load(text) for text in recipes.values()])
        if rows:
            section.blocks.append(Table(["key", *recipes], rows, "Keys that differ", words=len(recipes) + 1))
    section.blocks.extend(Code(text, name if len(runs) > 1 else "") for name, text in recipes.items())
    return section


def _differences(recipes: Sequence[Any]) -> list[tuple[str, ...]]:
    """Keys of recipes that do not have the same value in all."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [(key, *(each.get(key, "") for each in flat)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Values of nested mappings as text, by their keys joined with dots."""
    if not isinstance(value, dict) or not value:
        words = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        return {prefix.rstrip("."): words}
    found: dict[str, str] = {}
    for name, each in value.items():
        found |= _flat(each, f"{prefix}{name}.")
    return found


_SECTIONS = (
    _headline, _curves, _search, _pareto, _layers, _healing, _costs, _tasks, _samples, _machine, _recipe,
)  # fmt: skip
"""Functions that make the sections of a page, in their order."""
