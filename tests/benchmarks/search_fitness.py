"""Searches by different fitnesses in the demo's bin: their students, healed and trained alike.

The demo's recipe with the paper's search by perplexity, and with additive scores and ten generations of multi-fidelity
evolution by perplexity and by healed perplexity. All students are healed on 98,304 tokens and trained for 320 steps of
2,048 tokens. Perplexity on the demo's test text; one seed.
"""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from hf_whittle.recipe import Recipe
from hf_whittle.recipe.sections import SearchSection
from hf_whittle.run import run

from .demo_budgets import PAPER

RUNS = Path(__file__).parent / "runs" / "search_fitness"
ADDITIVE = {"algorithm": "additive", "generations": 10, "seed": 0}
SEARCHES: dict[str, dict[str, Any]] = {
    "evolution by perplexity": PAPER,
    "additive by perplexity": {**ADDITIVE, "fitness": "perplexity"},
    "additive by healed perplexity": {**ADDITIVE, "fitness": "healed-perplexity"},
}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    recipe = Recipe.load(demo / "recipe.yaml", teacher=str(demo / "teacher"))
    recipe.data.calibration_tokens = 98_304
    rows = {}
    for name, search in SEARCHES.items():
        section = SearchSection.parse(search, "search")
        output_dir = str(RUNS / name.replace(" ", "-"))
        changed = dataclasses.replace(recipe, output_dir=output_dir, search=section, baseline=False)
        results = run(changed, progress=False)
        found, healing, student = (results[stage] for stage in ("search", "healing", "student"))
        rows[name] = {
            "evaluations": found["evaluations"],
            "tokens": found["tokens"],
            "tflops": round((found["flops"] + healing["flops"]) / 1e12, 2),
            "perplexity_sliced_on_search_text": round(found["perplexity"], 2),
            "perplexity": {row["tokens"]: round(row["perplexity"], 2) for row in student["curve"][::5]},
            "subnet": found["subnet"],
        }
        print(name, rows[name], flush=True)
    return rows
