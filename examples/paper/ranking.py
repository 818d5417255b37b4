"""Experiment 3, ranking: which fitness tells what training makes of a subnet?

Subnets are drawn from the demo's bin, and none is left out. Each is trained with distillation, as a slice and healed,
with two orders of the text, which say how well any fitness could rank. Rates are bracketed on the first subnet.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from hf_whittle import HealedPerplexity, KLDivergence, Perplexity, Probe, ProbeConfig, SubnetConfig
from hf_whittle.cost import num_parameters

from .lab import BIN, SEARCHING, Lab, Start
from .tuning import Tuner

SEEDS = (0, 1)


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each subnet."""
    rng = random.Random(0)
    subnets = [lab.space.sample(rng, BIN) for _ in range(lab.size.subnets)]
    measure = fitnesses(lab)
    tuner = Tuner(lab)
    results: dict[str, Any] = {"subnets": []}
    for subnet in subnets:
        row: dict[str, Any] = {"subnet": subnet.to_dict(), "fitnesses": _fitnesses(lab, measure, subnet), "points": []}
        for start in (lab.sliced("sliced", subnet), lab.healed("healed", subnet, 0, tokens=lab.size.healing_tokens)):
            row["points"].append(lab.before(start))
            for steps in lab.size.study_steps:
                for seed in SEEDS:
                    row["points"].extend(_trained(tuner, start, steps, seed))
        results["subnets"].append(row)
        yield results


def _trained(tuner: Tuner, start: Start, steps: int, seed: int) -> list[dict[str, Any]]:
    """The training with the best rate; those of other rates, of the first subnet alone, are left out."""
    points = tuner.train(start, steps, seed, kind=start.name)
    return [point for point in points if point["rate"] == tuner.rates[start.name, steps]]


def fitnesses(lab: Lab) -> dict[str, Callable[[SubnetConfig], float]]:
    """Fitnesses by name, made when they are first called."""
    text, supernet = lab.text, lab.supernet
    healing: list[HealedPerplexity] = []
    probes: list[Probe] = []

    def healed(subnet: SubnetConfig) -> float:
        if not healing:
            calibration = text.calibrating(lab.size.healing_tokens, 0)
            healing.append(HealedPerplexity(supernet, text.fitness, calibration))
        return healing[0](subnet)

    def probed(subnet: SubnetConfig) -> float:
        if not probes:
            config = ProbeConfig(steps=4, batch_size=8, learning_rate=2e-3)
            probes.append(Probe(supernet, text.calibration[-32:], text.fitness, config))
        return probes[0](subnet)

    return {
        "number of parameters": lambda subnet: -num_parameters(supernet.full_config, subnet),
        "perplexity of the slice": Perplexity(supernet, text.fitness),
        "divergence of the slice": KLDivergence(supernet, text.fitness),
        "healed perplexity": healed,
        "probe of 4 steps of the slice": probed,
    }


def _fitnesses(lab: Lab, measure: dict[str, Callable[[SubnetConfig], float]], subnet: SubnetConfig) -> dict[str, float]:
    settings = {"fitnesses of": subnet.to_dict()}
    code = (*SEARCHING, "loss", "paper.ranking")
    facts = lab.cache.once(
        "fitnesses", settings, code, lambda: {"values": {name: float(of(subnet)) for name, of in measure.items()}}
    )
    return facts["values"]
