"""Experiment 5: how a teacher is learned from, by a slice and by random initialization of the same architecture.

Weights of text and teacher, temperatures, and parts of the teacher's distribution, one changed at a time from those of
the paper. Learning rates are bracketed on search text for each way and start with the first seed, and all ways read the
same text in the same order.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .headline import PREFIX
from .lab import Lab
from .training import PAPERS, Distillation
from .tuning import Tuner

WAYS: dict[str, Distillation | None] = {
    "as in the paper: alpha 0.2, temperature 0.9": PAPERS,
    "text alone": None,
    "alpha 0": Distillation(alpha=0.0),
    "alpha 0.5": Distillation(alpha=0.5),
    "alpha 0.8": Distillation(alpha=0.8),
    "temperature 0.8": Distillation(temperature=0.8),
    "temperature 1": Distillation(temperature=1.0),
    "temperature 2": Distillation(temperature=2.0),
    "top 64 of 2,048, the others as one": Distillation(top=64),
    "top 1,024 of 2,048, the others as one": Distillation(top=1024),
    "12 samples": Distillation(draws=12),
    "50 samples": Distillation(draws=50),
}


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each training."""
    results: dict[str, Any] = {"points": []}
    tuner = Tuner(lab)
    for seed in range(lab.size.repeats):
        starts = {
            "sliced": lab.sliced("sliced", PREFIX),
            "random": lab.random("random", lab.stock_config("96 x 4"), seed),
        }
        for kind, start in starts.items():
            for way, distillation in WAYS.items():
                arm = replace(start, name=f"{kind}: {way}")
                for point in tuner.train(arm, lab.size.ways_steps, seed, kind=kind, distillation=distillation):
                    results["points"].append({**point, "start": kind, "way": way})
                yield results
