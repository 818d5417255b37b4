"""`hf-whittle demo`: do the main job on the Python standard library, with a bundled teacher and no download."""

import argparse
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from .output import Outcome, add_json

if TYPE_CHECKING:
    from ..record.samples import Sample

HELP = "Do the main job on the Python standard library with the bundled teacher, offline and in a few minutes."
EXAMPLE = "hf-whittle demo --output-dir demo"

PROMPTS = ("def read(self, path):\n", "class Test", "import ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default="demo", help="folder of the results (default: demo)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from ..recipe.recipe import Recipe
    from ..record.samples import save_samples
    from .run import summary, work

    demo = resources.files("hf_whittle") / "demo"
    with resources.as_file(demo) as folder:
        recipe = Recipe.load(folder / "recipe.yaml", output_dir=options.output_dir, teacher=str(folder / "teacher"))
        results = work(recipe)
    samples, where = generate(Path(recipe.output_dir)), Path(recipe.output_dir).resolve()
    save_samples(recipe.output_dir, samples)
    texts = [sample.prompt + sample.continuation for sample in samples]
    shown = "\n".join("    " + text.replace("\n", "\n    ") + "\n" for text in texts)
    return Outcome(
        {"output_dir": str(where), "results": results, "texts": texts},
        f"\n{summary(results)}\n\nThe student continues three prompts:\n\n{shown}\n"
        f"The student, its card, the search and the pictures are in {where}",
    )


def generate(folder: Path) -> "list[Sample]":
    """Continue the prompts greedily, with the model in a folder."""
    from ..report.samples import continue_prompts

    return continue_prompts(folder, PROMPTS)
