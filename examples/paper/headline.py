"""Experiment 1: FLOPs that the best random initialization and a searched student take to the same perplexity.

All arms have 800,000 to 880,000 parameters, the demo's teacher, and a training of its own schedule for every budget.
Learning rates are bracketed on search text at the shortest budget, and for the key arms at longer ones too.
"""

from collections.abc import Iterator
from typing import Any

from hf_whittle import AdditiveSearchConfig, EvolutionConfig, HealedPerplexity, Perplexity, SubnetConfig

from .lab import Lab, Start
from .training import PAPERS
from .tuning import Tuner

PREFIX = SubnetConfig(96, 4, 6, 384)
"""The first entries of the teacher: a stock model in the bin."""
KEY = ("random, stock 96 x 4", "random, stock 96 x 4, distilled", "ours, healed")


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each training: of the key arms first, then of the others, longer ones and more seeds."""
    experiment, size = Headline(lab), lab.size
    short = [steps for steps in size.steps if steps <= 320]
    yield from experiment.train(experiment.key_arms(0), short, 0)
    others = experiment.other_arms(0) if size.other_steps else []
    yield from experiment.train(others, size.other_steps[:1], 0)
    yield from experiment.train(experiment.key_arms(0), [steps for steps in size.steps if 320 < steps <= 1280], 0)
    yield from experiment.train(others, size.other_steps[1:], 0)
    for seed in range(1, size.seeds):
        yield from experiment.train(experiment.key_arms(seed), short, seed)
    yield from experiment.train(experiment.key_arms(0), [steps for steps in size.steps if steps > 1280], 0)


class Headline:
    """Arms of the experiment, and its results so far.

    Args:
        lab (`Lab`): the laboratory.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        self.results: dict[str, Any] = {"teacher": lab.judged_teacher, "searches": [], "points": []}
        self.of_key = Tuner(lab, lab.size.bracketed)
        self.of_others = Tuner(lab, min(lab.size.other_steps, default=0))

    def key_arms(self, seed: int) -> list[Start]:
        found, stock = self._search("ours", seed), self.lab.stock_config("96 x 4")
        random = [self.lab.random(name, stock, seed) for name in KEY[:2]]
        subnet = SubnetConfig.from_dict(found["subnet"])
        cost, tokens = {"search": found["flops"]}, self.lab.size.healing_tokens
        return [*random, self.lab.healed(KEY[2], subnet, seed, cost, tokens)]

    def other_arms(self, seed: int) -> list[Start]:
        lab = self.lab
        ours, paper = (self._search(name, seed) for name in ("ours", "paper"))
        by_importance, scoring = lab.sorted_subnet(PREFIX, seed)
        sliced = lab.sliced("ours, sliced", SubnetConfig.from_dict(ours["subnet"]), {"search": ours["flops"]})
        of_paper = SubnetConfig.from_dict(paper["subnet"])
        return [
            lab.random("random, own architecture", sliced.make().config, seed),
            sliced,
            lab.sliced("the paper's search, sliced", of_paper, {"search": paper["flops"]}),
            lab.sliced("most important entries, sliced", by_importance, scoring),
            lab.sliced("first entries, sliced", PREFIX),
            *(lab.random(f"random, stock {shape}", lab.stock_config(shape), seed) for shape in lab.size.shapes),
        ]

    def train(self, arms: list[Start], budgets: Any, seed: int) -> Iterator[dict[str, Any]]:
        for start in arms:
            if not start.name.startswith("random"):
                self._add({**self.lab.before(start), "seed": seed})
        yield self.results
        for steps in budgets:
            for start in arms:
                is_random = start.name.startswith("random")
                kind = "random" if is_random else start.name.rpartition(", ")[2]
                tuner = self.of_key if start.name in KEY else self.of_others
                distillation = PAPERS if not is_random or start.name.endswith("distilled") else None
                for point in tuner.train(start, steps, seed, kind=kind, distillation=distillation):
                    self._add(point)
                yield self.results

    def _add(self, point: dict[str, Any]) -> None:
        if point not in self.results["points"]:
            self.results["points"].append(point)

    def _search(self, arm: str, seed: int) -> dict[str, Any]:
        lab, size = self.lab, self.lab.size
        if arm == "ours":
            calibration = lab.text.calibrating(size.healing_tokens, seed)
            found = lab.found(
                AdditiveSearchConfig(**size.additive, seed=seed),
                lambda: HealedPerplexity(lab.supernet, lab.text.fitness, calibration),
                {"fitness": "healed-perplexity", "calibration": [size.healing_tokens, seed]},
            )
        else:
            first = min(50, size.evaluations)
            config = EvolutionConfig(generations=(size.evaluations - first) // 50, population_size=first, seed=seed)
            found = lab.found(config, lambda: Perplexity(lab.supernet, lab.text.fitness), {"fitness": "perplexity"})
        row = {"arm": arm, "seed": seed, **{name: value for name, value in found.items() if name != "settings"}}
        if row not in self.results["searches"]:
            self.results["searches"].append(row)
        return found
