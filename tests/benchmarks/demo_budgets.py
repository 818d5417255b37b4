"""The paper's student in the demo's bin against random initialization over budgets: tokens and FLOPs to match it.

Found by the paper's search and not healed; both learn with the rate that is best for the baseline.

One search; then, for each budget, student and baseline are both trained with a schedule of that length. The student's
FLOPs count the search, its training and the teacher's forward passes.
"""

import dataclasses
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from hf_whittle.recipe import Recipe
from hf_whittle.run import run

STEPS = (80, 160, 320, 640)
PAPER = {
    "algorithm": "evolution", "fitness": "perplexity", "generations": 10, "population_size": 40, "num_offspring": 20,
    "num_elites": 8, "seed": 0,
}  # fmt: skip


def measure() -> list[dict[str, Any]]:
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    values = Recipe.load(demo / "recipe.yaml", teacher=str(demo / "teacher")).to_dict()
    training = {**values["training"], "learning_rate": 4e-3}
    recipe = Recipe.from_dict({**values, "search": PAPER, "heal": False, "training": training, "baseline": True})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        previous = None
        for steps in STEPS:
            output = Path(folder) / str(steps)
            if previous is not None:  # the search is the same for every budget
                output.mkdir()
                for name in ("search.json", "candidates.jsonl"):
                    shutil.copy(previous / name, output / name)
            training = {**recipe.training, "max_steps": steps, "save_strategy": "no"}
            results = run(dataclasses.replace(recipe, output_dir=str(output), training=training))
            rows.append(_row(steps, results))
            previous = output
    return rows


def _row(steps: int, results: dict[str, Any]) -> dict[str, Any]:
    curves = {name: results[name]["curve"] for name in ("student", "baseline")}
    return {
        "steps": steps,
        "tokens": results["student"]["tokens"],
        "parameters": results["student"]["parameters"],
        "perplexity": {
            "teacher": results["teacher"]["perplexity"],
            **{
                name: {"start": curve[0]["perplexity"], "end": curve[-1]["perplexity"]}
                for name, curve in curves.items()
            },
        },
        "to_match": results["to_match"],
    }
