"""Whole searches at equal FLOPs, and what each one's student is worth after distillation.

Searches of SmolLM2-135M in the lower bin of the ranking study: the paper's evolution by the perplexity of slices,
additive scores by the same and by healed perplexity, and the paper's evolution by a probe of slices. Each one ends with
the batch of candidates that spends its FLOPs, preparation included. The subnet that it finds is taken as a slice and
healed, then distilled as in the frontier's benchmark. Model, text and environment variables are those of the ranking
study. Searches and points are kept in `runs/`, so that an interrupted benchmark goes on.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from examples.paper.limited import UpTo
from hf_whittle import AdditiveSearchConfig, EvolutionConfig, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.probe import ProbeConfig
from hf_whittle.search.algorithm import SearchConfig
from hf_whittle.space.search_space import SearchSpace

from .frontier import Points, described
from .ranking.candidates import parameter_bin
from .ranking.fitnesses import healed_perplexity, sliced_perplexity
from .ranking.real import REAL
from .ranking.rows import packed
from .ranking.settings import RUNS, Material
from .ranking.training import Training

FLOPS = 1.8e14
"""Of each search: 410 slices of the bin's size read 2,048 tokens for it."""
HEALING_TOKENS = 16_384
STARTS: dict[str, int | None] = {"sliced": None, "healed on 16,384 tokens": HEALING_TOKENS}
BUDGETS = (32_768,)
RATES = {"sliced": (3e-4,), "healed on 16,384 tokens": (3e-4, 1e-4)}
"""Learning rates by start; by the frontier's benchmark, 3e-4 is the better one for slices, and either for others."""
EVOLUTION = EvolutionConfig(population_size=40, num_offspring=20, num_elites=8, generations=100)
ADDITIVE = AdditiveSearchConfig(
    head_options=2, neuron_options=3, channel_options=3, score_share=0.5, shares=[0.25, 1.0], sizes=[16, 4], initial=1
)


def probe(material: Material) -> Fitness:
    """Two steps of a slice's distillation, on as many tokens as it is judged on."""
    config = ProbeConfig(steps=2, batch_size=REAL.batch_size, learning_rate=3e-4)
    return Training(material.supernet, material.calibration, material.search, config, autocast=REAL.autocast)


SEARCHES: dict[str, tuple[SearchConfig, Callable[[Material], Fitness]]] = {
    "evolution by perplexity, the paper's": (EVOLUTION, lambda m: sliced_perplexity(REAL, m, m.search)),
    "additive by perplexity": (ADDITIVE, lambda m: sliced_perplexity(REAL, m, m.search)),
    "additive by healed perplexity": (ADDITIVE, lambda m: healed_perplexity(REAL, m, HEALING_TOKENS, m.search)),
    "evolution by a probe of 2 steps": (EVOLUTION, probe),
}


def found_by(material: Material, space: SearchSpace, name: str) -> dict[str, Any]:
    """The subnet that a search finds, and what it spends."""
    config, make = SEARCHES[name]
    fitness = make(material)
    result = search_subnets(
        material.supernet,
        space,
        bin=parameter_bin(material, REAL.bins[0]),
        config=UpTo(search=config, flops=FLOPS - fitness.preparation["flops"]),
        fitness=fitness,
        output_dir=RUNS / "whole_searches" / name,
        progress=False,
    )
    best = result.best_evaluation
    return {
        "subnet": best.subnet,
        "fitness": best.fitness,
        "parameters": num_parameters(material.supernet.config, best.subnet),
        "evaluations": len(result.evaluations),
        "flops": fitness.preparation["flops"] + sum(each.flops for each in result.evaluations),
    }


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    material = REAL.load()
    space = REAL.spaces(material)["most important"]
    found: dict[str, Any] = {}
    for name in SEARCHES:
        found[name] = found_by(material, space, name)
        print(time.strftime("%H:%M:%S"), name, {k: v for k, v in found[name].items() if k != "subnet"}, flush=True)
    subnets = {name: facts["subnet"] for name, facts in found.items()}
    for start, calibration_tokens in STARTS.items():
        points = Points("whole_searches", material, {start: calibration_tokens}, BUDGETS, RATES[start])
        points.measure(subnets)
    searches = {name: {**facts, "subnet": packed(facts["subnet"])} for name, facts in found.items()}
    return {"settings": described(material, STARTS), "searches": searches, "students": points.of(subnets)}
