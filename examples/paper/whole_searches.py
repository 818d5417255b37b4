"""Experiment 3, whole searches: the students that searches of equal cost find, healed and trained alike.

Each search has the same FLOPs, moments of healed perplexity counted, and several seeds. Beside them, a subnet made by
hand and the best of eight random ones by healed perplexity. The learning rate is bracketed on search text for the
student of the first search, and the same for all.
"""

from collections.abc import Iterator
from typing import Any

from hf_whittle import (
    AdditiveSearchConfig,
    EvolutionConfig,
    HealedPerplexity,
    Perplexity,
    RandomSearchConfig,
    SubnetConfig,
)
from hf_whittle.fitness.base import Fitness
from hf_whittle.search.algorithm import SearchConfig

from .lab import Lab
from .limited import UpTo
from .tuning import Tuner

BY_HAND = SubnetConfig(96, (0, 2, 3, 5), 6, 384)
"""Evenly spread layers, and the first entries of each dimension."""
SEARCHES = {
    "evolution by perplexity, the paper's": ("evolution", "perplexity"),
    "evolution by healed perplexity": ("evolution", "healed"),
    "additive by perplexity": ("additive", "perplexity"),
    "additive by healed perplexity": ("additive", "healed"),
    "best of 8 random ones by healed perplexity": ("random", "healed"),
}


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each training."""
    results: dict[str, Any] = {"searches": [], "points": []}
    tuner = Tuner(lab)
    for seed in range(lab.size.repeats):
        subnets = {}
        for name, (algorithm, fitness) in SEARCHES.items():
            found = _found(lab, algorithm, fitness, seed)
            row = {name: value for name, value in found.items() if name not in ("settings", "best_so_far")}
            results["searches"].append({"arm": name, "seed": seed, **row})
            subnets[name] = SubnetConfig.from_dict(found["subnet"]), {"search": found["flops"]}
        subnets["by hand"] = BY_HAND, {}
        for name, (subnet, cost) in subnets.items():
            start = lab.healed(name, subnet, seed, cost, lab.size.healing_tokens)
            results["points"].append({**lab.before(start), "seed": seed})
            points = tuner.train(start, lab.size.whole_steps, seed, kind="healed", name="healed")
            results["points"].extend(points)
            yield results


def _found(lab: Lab, algorithm: str, fitness: str, seed: int) -> dict[str, Any]:
    size = lab.size
    flops = size.search_teraflops * 1e12
    calibration = lab.text.calibrating(size.healing_tokens, seed)

    def make() -> Fitness:
        if fitness == "perplexity":
            return Perplexity(lab.supernet, lab.text.fitness)
        return HealedPerplexity(lab.supernet, lab.text.fitness, calibration)

    settings: dict[str, Any] = {"fitness": fitness}
    if fitness == "healed":
        settings["calibration"] = [size.healing_tokens, seed]
        flops -= _preparation(lab, make)
    configs: dict[str, SearchConfig] = {
        "evolution": EvolutionConfig(population_size=size.population, num_offspring=20, num_elites=8, seed=seed),
        "additive": AdditiveSearchConfig(**{**size.additive, "generations": 20}, seed=seed),
        "random": RandomSearchConfig(evaluations=min(8, size.population), seed=seed),
    }
    config = configs[algorithm]
    return lab.found(config if algorithm == "random" else UpTo(search=config, flops=flops, seed=seed), make, settings)


def _preparation(lab: Lab, make: Any) -> int:
    """FLOPs of gathering moments, the same for every seed."""
    facts = lab.cache.once(
        "preparation", {}, ("healing", "fitness", "cost"), lambda: {"flops": make().preparation["flops"]}
    )
    return int(facts["flops"])
