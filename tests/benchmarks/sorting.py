"""What sorting the demo's teacher by importance brings to the best coarse subnet: perplexity before training.

The demo's space, bin and evolution, with 240 evaluations of 4,096 held-out tokens each; scores are taken on 16,384
tokens of training text. Three seeds.
"""

import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import hf_whittle
from hf_whittle import EvolutionConfig, ParameterBin, SearchSpace, score_importance, search_subnets, sort_by_importance
from hf_whittle.importance import CRITERIA
from hf_whittle.recipe import Recipe
from hf_whittle.run import Run

SEEDS = range(3)


def measure() -> dict[str, Any]:
    demo = Path(hf_whittle.__file__).parent / "demo"
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(demo / "recipe.yaml", teacher=str(demo / "teacher"), output_dir=folder)
        run = Run(recipe, progress=False)
        text = run.blocks["train"].select(range(64))
        found = {"unsorted": _search(run, run.supernet)}
        for criterion in CRITERIA:
            network = copy.deepcopy(run.supernet)
            sort_by_importance(network, score_importance(network, text, criterion=criterion, progress=False))
            found[f"by {criterion}"] = _search(run, network)
    return found


def _search(run: Run, network: Any) -> dict[str, Any]:
    space = SearchSpace.from_config(network.config, "coarse", layer_wise=True)
    bounds = ParameterBin(run.recipe.bin.low, run.recipe.bin.high)
    best = []
    for seed in SEEDS:
        config = EvolutionConfig(generations=10, population_size=40, num_offspring=20, num_elites=8, seed=seed)
        result = search_subnets(
            network, space, bin=bounds, eval_dataset=run.blocks["search"], config=config, progress=False
        )
        best.append(round(result.best_evaluation.fitness, 2))
    return {"best_perplexity": best, "median": statistics.median(best)}
