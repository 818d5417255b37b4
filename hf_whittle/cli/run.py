"""`hf-whittle run`: do what a recipe says."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

HELP = "Search, extract, pretrain and report, as a recipe says; goes on where it was interrupted."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; see examples/recipes")
    parser.add_argument("--output-dir", help="folder of the results, instead of the recipe's")


def main(options: argparse.Namespace) -> None:
    from ..recipe.recipe import Recipe

    recipe = Recipe.load(options.recipe, output_dir=options.output_dir)
    print(summary(work(recipe)))
    print(f"\nThe student, its card and the search are in {recipe.output_dir}")


def work(recipe: "Recipe") -> dict[str, Any]:
    """Do a recipe, with the bars of search and training but without those of loading and saving."""
    from transformers.utils import logging

    from ..run.run import run

    logging.disable_progress_bar()
    return run(recipe)


def summary(results: dict[str, Any]) -> str:
    """A table of what a run measured."""
    rows = [
        ("", "parameters", "perplexity at the start", "at the end", "tokens", "to match the baseline: tokens", "FLOPs")
    ]
    match = results.get("to_match", {})
    rows.append(("teacher", _count(results["teacher"]["parameters"]), "", _perplexity(results["teacher"]), "", "", ""))
    for name in ("baseline", "student"):
        if name not in results:
            continue
        run = results[name]
        flops = match.get(f"{name}_flops")
        rows.append(
            (
                "random initialization" if name == "baseline" else "student",
                _count(run["parameters"]),
                _perplexity(run["curve"][0]),
                _perplexity(run["curve"][-1]),
                _count(run["tokens"]),
                _count(match[f"{name}_tokens"]) if flops is not None else "",
                "" if flops is None else f"{sum(flops.values()) if isinstance(flops, dict) else flops:.2e}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *_ratios(results)])


def _ratios(results: dict[str, Any]) -> list[str]:
    match = results.get("to_match")
    if match is None:
        return []
    if "student_flops" not in match:
        return ["", "The student did not reach the baseline's final perplexity within its tokens."]
    parts = ", ".join(f"{name} {value:.2e}" for name, value in match["student_flops"].items())
    ratio = (
        f"{match['tokens_ratio']:.1f} times fewer tokens" if "tokens_ratio" in match else "no training tokens at all"
    )
    return ["", f"The student matched the baseline with {ratio}; FLOPs ratio {match['flops_ratio']:.2f} ({parts})."]


def _count(number: int) -> str:
    return f"{number:,}"


def _perplexity(row: dict[str, Any]) -> str:
    return f"{row['perplexity']:.3f}"
