"""`hf-whittle train`: run a recipe whose student is there already."""

import argparse

from .output import Outcome, add_json

HELP = "Distil a given student as a recipe says, without a search; an interrupted training goes on."
EXAMPLE = "hf-whittle train recipe.yaml --student my-student --output-dir my-trained-student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; its teacher, data and training are used")
    parser.add_argument("--student", help="folder of the student, or its name on the Hub (default: the recipe's)")
    parser.add_argument("--output-dir", help="folder of the trained student (default: the recipe's)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from ..errors import RecipeError
    from .run import outcome, read_recipe, work

    recipe = read_recipe(options, **({} if options.student is None else {"student": options.student}))
    if recipe.student is None:
        raise RecipeError(
            f"{options.recipe} searches for its student; give --student a folder or a name on the Hub, or use "
            "`hf-whittle run`"
        )
    return outcome(work(recipe), recipe)
