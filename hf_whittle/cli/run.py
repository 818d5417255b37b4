"""`hf-whittle run`: run a recipe."""

import argparse
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json, aligned

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

HELP = "Search, extract, pretrain and report as a recipe says; an interrupted run goes on."
EXAMPLE = "hf-whittle run recipe.yaml --training.max_steps 100"

_COLUMNS = (
    "", "parameters", "perplexity at the start", "at the end", "tokens", "to match the baseline: tokens", "FLOPs",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; see examples/recipes")
    parser.add_argument("--output-dir", help="folder of the results (default: the recipe's)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    recipe = read_recipe(options)
    return outcome(work(recipe), recipe)


def read_recipe(options: argparse.Namespace, **overrides: Any) -> "Recipe":
    """Read the recipe that a command is given, with the keys and the folder given beside it, and overrides."""
    from ..recipe.recipe import Recipe

    output = {} if options.output_dir is None else {"output_dir": options.output_dir}
    return Recipe.load(options.recipe, **{**options.keys, **output, **overrides})


def outcome(results: dict[str, Any], recipe: "Recipe") -> Outcome:
    """The outcome of a run."""
    made = "its card and the search" if recipe.student is None else "and its card"
    where = f"The student, {made} are in {recipe.output_dir}".replace("student, and", "student and")
    return Outcome({"output_dir": recipe.output_dir, "results": results}, f"{summary(results)}\n\n{where}")


def work(recipe: "Recipe") -> dict[str, Any]:
    """Run a recipe, with progress bars of search and training but none of loading and saving."""
    from transformers.utils import logging

    from ..run import run

    logging.disable_progress_bar()
    return run(recipe)


def summary(results: dict[str, Any]) -> str:
    """Make a table of the measurements of a run."""
    match, teacher = results.get("to_match", {}), results["teacher"]
    rows: list[tuple[str, ...]] = [
        _COLUMNS,
        ("teacher", _count(teacher["parameters"]), "", _perplexity(teacher), "", "", ""),
    ]
    trained = [name for name in ("baseline", "student") if name in results]
    rows += [_row(name, results[name], match) for name in trained]
    if "vocabulary" in results:
        bits = [("bits per byte at the start", "at the end"), ("", _bits(teacher))]
        bits += [(_bits(results[name]["curve"][0]), _bits(results[name]["curve"][-1])) for name in trained]
        rows = [(*row[:4], *own, *row[4:]) for row, own in zip(rows, bits, strict=True)]
    header, *lines = aligned(rows)
    return "\n".join([header, "-" * len(header), *lines, *_vocabulary(results), *_ratios(results)])


def _vocabulary(results: dict[str, Any]) -> list[str]:
    """The vocabularies of student and teacher, if they may differ."""
    found = results.get("vocabulary")
    if found is None:
        return []
    which = "The student and the random initialization have" if "baseline" in results else "The student has"
    return [
        "",
        f"{which} {_count(found['size'])} of the teacher's {_count(found['teacher_size'])} vocabulary entries: "
        f"{found['tokens_per_byte']:.4g} tokens per byte, the teacher {found['teacher_tokens_per_byte']:.4g}. "
        "Between different vocabularies, only bits per byte compare.",
    ]


def _row(name: str, training: dict[str, Any], match: dict[str, Any]) -> tuple[str, ...]:
    """Cells of a trained model; the last two are empty where it did not match the baseline."""
    flops = match.get(f"{name}_flops")
    return (
        "random initialization" if name == "baseline" else "student",
        _count(training["parameters"]),
        _perplexity(training["curve"][0]),
        _perplexity(training["curve"][-1]),
        _count(training["tokens"]),
        "" if flops is None else _count(match[f"{name}_tokens"]),
        "" if flops is None else f"{sum(flops.values()) if isinstance(flops, dict) else flops:.2e}",
    )


def _ratios(results: dict[str, Any]) -> list[str]:
    match = results.get("to_match")
    if match is None:
        return []
    if "student_flops" not in match:
        return ["", "The student did not reach the baseline's final perplexity within its tokens."]
    parts = ", ".join(f"{name} {value:.2e}" for name, value in match["student_flops"].items())
    ratio = f"FLOPs ratio {match['flops_ratio']:.2f}"
    if "tokens_ratio" in match:
        found = f"matched the baseline with {match['tokens_ratio']:.1f} times fewer training tokens; {ratio}"
    else:  # a ratio of the baseline's budget and a constant
        found = f"was as good as the baseline before any training, so that the {ratio} grows with the baseline's tokens"
    return ["", f"The student {found} ({parts})."]


def _count(number: int) -> str:
    return f"{number:,}"


def _perplexity(row: dict[str, Any]) -> str:
    return f"{row['perplexity']:.3f}"


def _bits(row: dict[str, Any]) -> str:
    return f"{row['bits_per_byte']:.4f}" if "bits_per_byte" in row else ""
