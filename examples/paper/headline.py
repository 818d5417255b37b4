"""Experiment 1: FLOPs that the best random initialization and a searched student take to the same perplexity.

All arms have 800,000 to 880,000 parameters, the demo's teacher, and a training of its own schedule for every budget.
Learning rates are bracketed on search text at the shortest budget, and for the key arms at longer ones too.
"""

from collections.abc import Iterator
from typing import Any

from hf_whittle import AdditiveSearchConfig, EvolutionConfig, HealedPerplexity, Perplexity, SubnetConfig

from .lab import HEALING_TOKENS, Lab, Start, best_of
from .training import Training

PREFIX = SubnetConfig(96, 4, 6, 384)
"""The first entries of the teacher: a stock model in the bin."""
KEY = ("random, stock 96 x 4", "random, stock 96 x 4, distilled", "ours, healed")
FIRST_RATES = {"random": 4e-3, "sliced": 4e-3, "healed": 2e-3}


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each point."""
    results: dict[str, Any] = {"searches": [], "points": []}
    rates: dict[tuple[str, int], float] = {}
    first, *others = range(lab.size.seeds)
    key = _key_arms(lab, first, results)
    yield results
    for steps in [each for each in lab.size.steps if each <= lab.size.bracketed]:
        for start in key:
            yield from _train(lab, results, start, steps, first, rates)
    rest = _other_arms(lab, first, results)
    for start in rest:
        yield from _train(lab, results, start, lab.size.other_steps[0], first, rates)
    for steps in [each for each in lab.size.steps if each > lab.size.bracketed][:1]:
        for start in key:
            yield from _train(lab, results, start, steps, first, rates)
    for steps in lab.size.other_steps[1:]:
        for start in rest:
            yield from _train(lab, results, start, steps, first, rates)
    for seed in others:
        of_seed = _key_arms(lab, seed, results)
        for steps in [each for each in lab.size.steps if each <= lab.size.bracketed]:
            for start in of_seed:
                yield from _train(lab, results, start, steps, seed, rates)
    for steps in [each for each in lab.size.steps if each > lab.size.bracketed][1:]:
        for start in key:
            yield from _train(lab, results, start, steps, first, rates)


def _key_arms(lab: Lab, seed: int, results: dict[str, Any]) -> list[Start]:
    found = _search(lab, "ours", seed, results)
    stock = lab.stock_config("96 x 4")
    arms = [lab.random(name, stock, seed) for name in KEY[:2]]
    arms.append(lab.healed(KEY[2], SubnetConfig.from_dict(found["subnet"]), seed, {"search": found["flops"]}))
    _before(lab, results, arms, seed)
    return arms


def _other_arms(lab: Lab, seed: int, results: dict[str, Any]) -> list[Start]:
    ours, paper = (_search(lab, name, seed, results) for name in ("ours", "paper"))
    subnet = SubnetConfig.from_dict(ours["subnet"])
    by_importance, scoring = lab.sorted_subnet(PREFIX, seed)
    sliced = lab.sliced("ours, sliced", subnet, {"search": ours["flops"]})
    arms = [
        lab.random("random, own architecture", sliced.make().config, seed),
        sliced,
        lab.sliced("the paper's search, sliced", SubnetConfig.from_dict(paper["subnet"]), {"search": paper["flops"]}),
        lab.sliced("most important entries, sliced", by_importance, scoring),
        lab.sliced("first entries, sliced", PREFIX),
        *(lab.random(f"random, stock {shape}", lab.stock_config(shape), seed) for shape in lab.size.shapes),
    ]
    _before(lab, results, arms, seed)
    return arms


def _search(lab: Lab, arm: str, seed: int, results: dict[str, Any]) -> dict[str, Any]:
    text, size = lab.text, lab.size
    if arm == "ours":
        calibration = text.calibrating(HEALING_TOKENS, seed)
        found = lab.found(
            AdditiveSearchConfig(**size.additive, seed=seed),
            lambda: HealedPerplexity(lab.supernet, text.fitness, calibration),
            {"fitness": "healed-perplexity", "calibration": [HEALING_TOKENS, seed]},
        )
    else:
        generations = -(-size.evaluations // 50) - 1
        config = EvolutionConfig(generations=max(0, generations), population_size=min(50, size.evaluations), seed=seed)
        found = lab.found(config, lambda: Perplexity(lab.supernet, text.fitness), {"fitness": "perplexity"})
    row = {"arm": arm, "seed": seed, **{k: v for k, v in found.items() if k != "settings"}}
    if row not in results["searches"]:
        results["searches"].append(row)
    return found


def _before(lab: Lab, results: dict[str, Any], arms: list[Start], seed: int) -> None:
    for start in arms:
        if not start.name.startswith("random"):
            results["points"].append({**lab.before(start), "seed": seed})


def _train(
    lab: Lab, results: dict[str, Any], start: Start, steps: int, seed: int, rates: dict[tuple[str, int], float]
) -> Iterator[dict[str, Any]]:
    """Train an arm on a budget, and note the rate that is best on the search text."""
    name = start.name
    distilled = not name.startswith("random") or name.endswith("distilled")
    known = [rates[name, each] for each in (*lab.size.steps, *lab.size.other_steps) if (name, each) in rates]
    if seed or (known and (steps > lab.size.bracketed or name not in KEY)):
        rate = rates.get((name, steps), known[-1])
        points = [lab.trained(start, Training(steps, rate, seed, distilled))]
    else:
        kind = "random" if name.startswith("random") else name.rpartition(", ")[2]
        points = lab.bracketed(start, steps, known[-1] if known else FIRST_RATES[kind], seed, distilled)
        rates[name, steps] = best_of(points)["rate"]
    results["points"].extend(points)
    yield results
