"""Experiment 2: the lowest perplexity that a search finds in each of four spaces, in three bins, over evaluations.

The paper's evolution by the perplexity of slices, with the same number of evaluations everywhere.
"""

from collections.abc import Iterator
from typing import Any

from hf_whittle import EvolutionConfig, ParameterBin, Perplexity, SearchSpace
from hf_whittle.cost import num_parameters

from .lab import Lab

SHARES = (0.3, 0.5, 0.7)
"""Bins: shares of the teacher's parameters, each to 5% above."""


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each search."""
    results: dict[str, Any] = {"searches": []}
    full = num_parameters(lab.supernet.full_config)
    first = min(50, lab.size.space_evaluations)
    generations = (lab.size.space_evaluations - first) // 50
    for seed in range(lab.size.repeats):
        for share in SHARES:
            for granularity in ("coarse", "fine"):
                for layer_wise in (False, True):
                    space = SearchSpace.from_config(lab.supernet.config, granularity=granularity, layer_wise=layer_wise)
                    found = lab.found(
                        EvolutionConfig(population_size=first, generations=generations, seed=seed),
                        lambda: Perplexity(lab.supernet, lab.text.fitness),
                        {"fitness": "perplexity", "space": [granularity, layer_wise]},
                        space,
                        ParameterBin(int(share * full), int(1.05 * share * full)),
                    )
                    row = {name: value for name, value in found.items() if name not in ("settings", "subnet")}
                    place = {"granularity": granularity, "layer_wise": layer_wise, "share": share, "seed": seed}
                    results["searches"].append({**place, **row})
                    yield results
