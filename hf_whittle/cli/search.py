"""`hf-whittle search`: do the search of a recipe alone."""

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

HELP = "Do the search of a recipe alone, and show the best subnet; an interrupted search goes on, and so does `run`."
EXAMPLE = "hf-whittle search recipe.yaml --search.generations 10"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; see examples/recipes")
    parser.add_argument("--output-dir", help="folder of the search, and of a later run (default: the recipe's)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..run import search
    from .run import read_recipe

    logging.disable_progress_bar()
    recipe = read_recipe(options)
    facts = search(recipe)
    return Outcome(
        {"output_dir": recipe.output_dir, "search": facts},
        f"{summary(facts)}\n\n{_next(options, recipe)}",
    )


def summary(facts: dict[str, Any]) -> str:
    """Describe the best subnet of a search."""
    from ..subnet import SubnetConfig
    from .info import kept

    subnet, fitness = SubnetConfig.from_dict(facts["subnet"]), facts["fitness"]
    sliced = f", perplexity {facts['perplexity']:.4g} as sliced" if "perplexity" in facts else ""
    found = {
        "evaluations": f"{facts['evaluations']:,}",
        fitness["name"]: f"{fitness['value']:.4g}{sliced if fitness['name'] != 'perplexity' else ''}",
        "parameters": f"{facts['parameters']:,}",
        **kept(subnet),
    }
    width = max(map(len, found))
    return "\n".join(["Best subnet of the search:", "", *(f"  {key:<{width}}  {found[key]}" for key in found)])


def _next(options: argparse.Namespace, recipe: "Recipe") -> str:
    """Commands that go on from the search."""
    folder, given = recipe.output_dir, [] if options.output_dir is None else ["--output-dir", options.output_dir]
    run = shlex.join(["hf-whittle", "run", options.recipe, *given, *options.given_keys])
    extract = shlex.join(
        ["hf-whittle", "extract", recipe.origin, "--subnet", folder, "--output-dir", f"{folder}-sliced"]
    )
    return (
        f"The search is in {folder}. Next:\n"
        f"  {run}    # extract, heal and train this subnet\n"
        f"  {extract}    # or extract it alone"
    )
