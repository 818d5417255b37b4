"""`hf-whittle demo`: do the main job on the Python standard library, with a bundled teacher and no download."""

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from .output import Outcome, add_json

HELP = "Do the main job on the Python standard library with the bundled teacher, offline and in a few minutes."
EXAMPLE = "hf-whittle demo --output-dir demo"

PROMPTS = ("def read(self, path):\n", "class Test", "import ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default="demo", help="folder of the results (default: demo)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from ..recipe.recipe import Recipe
    from .run import summary, work

    demo = resources.files("hf_whittle") / "demo"
    with resources.as_file(demo) as folder:
        recipe = Recipe.load(folder / "recipe.yaml", output_dir=options.output_dir, teacher=str(folder / "teacher"))
        results = work(recipe)
    texts, where = generate(Path(recipe.output_dir)), Path(recipe.output_dir).resolve()
    shown = "\n".join("    " + text.replace("\n", "\n    ") + "\n" for text in texts)
    return Outcome(
        {"output_dir": str(where), "results": results, "texts": texts},
        f"\n{summary(results)}\n\nThe student continues three prompts:\n\n{shown}\n"
        f"The student, its card, the search and the pictures are in {where}",
    )


def generate(folder: Path) -> list[str]:
    """Continue the prompts greedily, with the model in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(
            **inputs, max_new_tokens=48, do_sample=False, repetition_penalty=1.2, pad_token_id=tokenizer.eos_token_id
        )
        texts.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return texts
