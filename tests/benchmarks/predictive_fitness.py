"""Fitnesses as predictors: how they rank near-good subnets, against the perplexity after training and their cost.

Two teachers, three bins each, in the coarse and the fine-grained layer-wise space: near-good subnets (perplexity before
training at most 1.6 times the lowest of a short evolution) are trained by distillation for two budgets. Every training
and every fitness is kept in `runs/`, so that an interrupted benchmark goes on.
"""

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau, spearmanr

from hf_whittle import EvolutionConfig, KLDivergence, ParameterBin, SearchSpace, SubnetConfig, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.files.text import write_text
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.probe import Probe, ProbeConfig
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

from .teachers import teacher_of

RUNS = Path(__file__).parent / "runs" / "predictive_fitness"
TEACHERS = ("wide", "deep")  # the demo's, and one of 96 channels and 10 layers
BINS = (0.5, 0.3, 0.7)  # of the teacher's parameters, and 5% more
GRANULARITIES = ("coarse", "fine")
SUBNETS, SEEDS = 6, 1  # in each group, at least; the committed result has up to 12 in some
BUDGETS = {"32 steps": 32, "128 steps": 128}  # of 8 blocks of 256 tokens
LEARNING_RATE = 2e-3  # within 1% of the best for a healed start and a sliced one after 32 and 128 steps
CALIBRATION_BLOCKS = 384
PROBES = (4, 16)
DEEP_TEACHER = ("--hidden_size", "96", "--num_hidden_layers", "10", "--num_attention_heads", "6", "--max_steps", "1600")


@cache
def run_of(teacher: str) -> Inputs:
    """The demo with one of the teachers: its text is held out from both."""
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    folder = str(demo / "teacher")
    if teacher == "deep":
        folder = teacher_of(RUNS / "teacher", *DEEP_TEACHER, "--warmup_steps", "100")
    return Inputs(Recipe.load(demo / "recipe.yaml", teacher=folder, output_dir=str(RUNS / f"demo-{teacher}")))


@cache
def near_good(teacher: str, share: float, granularity: str) -> list[tuple[SubnetConfig, float]]:
    """40 subnets of a bin with their perplexity; the first few of them are spread over the whole range as well."""
    run = run_of(teacher)
    size = share * num_parameters(run.supernet.config)
    result = search_subnets(
        run.supernet,
        SearchSpace.from_config(run.supernet.config, granularity=granularity, layer_wise=True),
        bin=ParameterBin(size, 1.05 * size),
        eval_dataset=run.blocks["search"],
        config=EvolutionConfig(population_size=100, generations=8, num_offspring=25, num_elites=10),
        output_dir=RUNS / "searches" / f"{teacher}-{share}-{granularity}",
        progress=False,
    )
    best = result.best_evaluation.fitness
    good = sorted((e for e in result.answers if e.fitness <= 1.6 * best), key=lambda e: e.fitness)
    if len(good) < 40:
        good = sorted(result.answers, key=lambda e: e.fitness)[:40]
    chosen = [good[round(i * (len(good) - 1) / 39)] for i in range(40)]
    order = sorted(range(40), key=lambda i: i * 0.6180339887 % 1.0)  # any first ones are spread evenly
    return [(chosen[i].subnet, chosen[i].fitness) for i in order]


def _known(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


@cache
def healing_of(teacher: str) -> HealedPerplexity:
    """Healed perplexity on the search's text, with moments of 98,304 tokens of training text."""
    run = run_of(teacher)
    return HealedPerplexity(
        run.supernet, run.blocks["search"], run.blocks["train"].shuffle(seed=0).select(range(CALIBRATION_BLOCKS))
    )


def training(teacher: str, start: str, config: ProbeConfig, kind: type[Probe] = Probe) -> Probe:
    """A training on text in an order of the seed, judged on the test text."""
    run = run_of(teacher)
    order = torch.randperm(len(run.blocks["train"]), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return kind(
        run.supernet,
        run.blocks["train"].select(order[: config.steps * config.batch_size]),
        run.blocks["test"],
        config,
        healing=healing_of(teacher) if start == "healed" else None,
    )


@cache
def training_of(teacher: str, start: str, seed: int) -> Probe:
    """A training for the longer budget."""
    steps = max(BUDGETS.values())
    return training(teacher, start, ProbeConfig(steps=steps, batch_size=8, learning_rate=LEARNING_RATE, seed=seed))


def train(teachers: Sequence[str], starts: Sequence[str] = ("healed",)) -> None:
    """Perplexity on test text after each budget, by group, start, seed and subnet; missing ones are trained."""
    for seed, share, number in product(range(SEEDS), BINS, range(SUBNETS)):
        for teacher, granularity, start in product(teachers, GRANULARITIES, starts):
            path = RUNS / "trained" / f"{teacher}-{share}-{granularity}.json"
            known = _known(path)
            subnet, before = near_good(teacher, share, granularity)[number]
            row = known.setdefault(subnet.digest, {"subnet": subnet.to_dict(), "sliced": before})
            if f"{start} {seed}" in row:
                continue
            started = time.perf_counter()
            longest = training_of(teacher, start, seed)
            ends = {name: longest(subnet, steps / longest.config.steps) for name, steps in BUDGETS.items()}
            row[f"{start} {seed}"] = ends
            write_text(path, json.dumps(known))
            seconds = f"{time.perf_counter() - started:.0f} s"
            print(path.stem, start, number, round(before, 2), ends, seconds, flush=True)


# The fitnesses


@cache
def fitnesses_of(teacher: str) -> dict[str, Fitness]:
    """Fitnesses to compare; the perplexity of each slice is known from the choice of subnets."""
    run = run_of(teacher)
    search, train_blocks = run.blocks["search"], run.blocks["train"].shuffle(seed=0)
    healed = healing_of(teacher)
    return {
        "kl": KLDivergence(run.supernet, search),
        "healed, 24,576 tokens": HealedPerplexity(run.supernet, search, train_blocks.select(range(96))),
        "healed, 98,304 tokens": healed,
        **{
            f"probe of {steps} steps, healed": Probe(
                run.supernet,
                train_blocks,
                search,
                ProbeConfig(steps=steps, batch_size=8, learning_rate=LEARNING_RATE),
                healing=healed,
            )
            for steps in PROBES
        },
        "probe of 16 steps, sliced": Probe(
            run.supernet,
            train_blocks,
            search,
            ProbeConfig(steps=16, batch_size=8, learning_rate=LEARNING_RATE),
        ),
    }


def evaluate(teachers: Sequence[str]) -> None:
    """Every fitness of every subnet that was trained; missing ones are evaluated."""
    for teacher, share, granularity in product(teachers, BINS, GRANULARITIES):
        group = f"{teacher}-{share}-{granularity}"
        path = RUNS / "fitness" / f"{group}.json"
        known = _known(path)
        for digest, row in _known(RUNS / "trained" / f"{group}.json").items():
            values = known.setdefault(digest, {"perplexity": row["sliced"]})
            for name, fitness in fitnesses_of(teacher).items():
                if name not in values:
                    values[name] = fitness(SubnetConfig.from_dict(row["subnet"]))
            write_text(path, json.dumps(known))
        print(group, len(known), flush=True)


def rank() -> dict[str, Any]:
    """Kendall's tau and Spearman's rho within a group, their mean over groups and its bootstrap interval."""
    rows: dict[str, Any] = {}
    for start, budget in product(("healed", "sliced"), BUDGETS):
        groups: dict[str, list[tuple[dict[str, float], float]]] = {}
        for path in sorted((RUNS / "fitness").glob("*.json")):
            values, trained = _known(path), _known(RUNS / "trained" / path.name)
            found = [
                (values[digest], statistics.mean(ends))
                for digest, row in trained.items()
                if (ends := [row[key][budget] for key in row if key.startswith(f"{start} ")]) and digest in values
            ]
            if len(found) >= 5:
                groups[path.stem] = found
        if groups:
            names = list(next(iter(groups.values()))[0][0])
            rows[f"{start}, {budget}"] = {
                "subnets": {group: len(found) for group, found in groups.items()},
                "fitness": {name: _correlations(list(groups.values()), name) for name in names},
            }
    return rows


def _correlations(groups: list[list[tuple[dict[str, float], float]]], name: str) -> dict[str, Any]:
    def mean_tau(samples: list[list[tuple[dict[str, float], float]]]) -> float:
        taus = [kendalltau([f[name] for f, _ in group], [end for _, end in group]).statistic for group in samples]
        return statistics.mean(tau for tau in taus if not math.isnan(tau))

    rng = random.Random(0)
    drawn = sorted(mean_tau([rng.choices(group, k=len(group)) for group in groups]) for _ in range(200))
    rho = [spearmanr([f[name] for f, _ in group], [end for _, end in group]).statistic for group in groups]
    return {
        "tau": round(mean_tau(groups), 3),
        "tau_90": [round(drawn[10], 3), round(drawn[189], 3)],
        "rho": round(statistics.mean(rho), 3),
    }


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    train(TEACHERS)
    evaluate(TEACHERS)
    costs = {name: fitness.tokens() for name, fitness in fitnesses_of("wide").items()}
    return {"tokens": {"perplexity": 4096, **costs}, "ranks": rank()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1:] or TEACHERS)
    evaluate(sys.argv[1:] or TEACHERS)
