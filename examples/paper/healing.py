"""Experiment 4: perplexity over all FLOPs of one subnet's slice and of its healed students, each then distilled.

Four of the six layers of the demo's teacher at three quarters of its width. Healing takes several numbers of tokens.
Learning rates are bracketed on search text for each start and budget with the first seed.
"""

from collections.abc import Iterator
from typing import Any

from hf_whittle import SubnetConfig

from .lab import Lab, Start
from .tuning import Tuner

SUBNET = SubnetConfig(96, (0, 1, 3, 5), 6, 384)


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each training."""
    results: dict[str, Any] = {"subnet": SUBNET.to_dict(), "points": []}
    tuner = Tuner(lab)
    for seed in range(lab.size.repeats):
        for start in starts(lab, seed):
            kind = start.name.partition(" ")[0]
            results["points"].append({**lab.before(start), "seed": seed})
            for steps in lab.size.healing_steps:
                results["points"].extend(tuner.train(start, steps, seed, kind=kind))
                yield results


def starts(lab: Lab, seed: int) -> list[Start]:
    healed = [lab.healed(f"healed on {n:,} tokens", SUBNET, seed, tokens=n) for n in lab.size.calibration]
    return [lab.sliced("sliced", SUBNET), *healed]
