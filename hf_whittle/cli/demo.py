"""`hf-whittle demo`: do the main job on the Python standard library, with a bundled teacher and no download."""

import argparse
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..record.samples import Sample

HELP = "Do the main job on the Python standard library with the bundled teacher, offline and in a few minutes."

PROMPTS = ("def read(self, path):\n", "class Test", "import ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default="demo", help="folder of the results (default: demo)")


def main(options: argparse.Namespace) -> None:
    from ..recipe.recipe import Recipe
    from ..record.samples import save_samples
    from .run import summary, work

    demo = resources.files("hf_whittle") / "demo"
    with resources.as_file(demo) as folder:
        recipe = Recipe.load(folder / "recipe.yaml", output_dir=options.output_dir, teacher=str(folder / "teacher"))
        results = work(recipe)
    print(f"\n{summary(results)}")
    print("\nThe student continues three prompts:\n")
    samples = generate(Path(recipe.output_dir))
    save_samples(recipe.output_dir, samples)
    for sample in samples:
        print("    " + (sample.prompt + sample.continuation).replace("\n", "\n    ") + "\n")
    print(f"The student, its card, the search and the pictures are in {Path(recipe.output_dir).resolve()}")


def generate(folder: Path) -> "list[Sample]":
    """Continue the prompts greedily, with the model in a folder."""
    from ..report.samples import continue_prompts

    return continue_prompts(folder, PROMPTS)
