"""How well fitnesses rank near-good subnets by what training makes of them, against what they cost.

Two teachers, three bins each, in the coarse and the fine-grained layer-wise space: near-good subnets (perplexity before
training at most 1.6 times the lowest of a short evolution) are trained by distillation for two budgets. Every training
and every fitness is kept in `runs/`, so that an interrupted benchmark goes on.
"""

import json
import subprocess
import sys
import time
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import torch

from hf_whittle import EvolutionConfig, ParameterBin, SearchSpace, SubnetConfig, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.distillation.probe import Probe, ProbeConfig
from hf_whittle.files import write_text
from hf_whittle.recipe import Recipe
from hf_whittle.run import Run

RUNS = Path(__file__).parent / "runs" / "predictive_fitness"
TEACHERS = ("wide", "deep")  # the demo's, and one of 96 channels and 10 layers
BINS = (0.3, 0.5, 0.7)  # of the teacher's parameters, and 5% more
GRANULARITIES = ("coarse", "fine")
SUBNETS, SEEDS = 12, 1
BUDGETS = {"32 steps": 32, "128 steps": 128}  # of 8 blocks of 256 tokens
LEARNING_RATE = 2e-3  # the best of 1e-3, 2e-3 and 4e-3 after 128 steps of two subnets
DEEP_TEACHER = ("--hidden_size", "96", "--num_hidden_layers", "10", "--num_attention_heads", "6", "--max_steps", "1600")


@cache
def run_of(teacher: str) -> Run:
    """The demo with one of the teachers: its text is held out from both."""
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    folder = str(demo / "teacher") if teacher == "wide" else _deep_teacher()
    return Run(
        Recipe.load(demo / "recipe.yaml", teacher=folder, output_dir=str(RUNS / f"demo-{teacher}")), progress=False
    )


def _deep_teacher() -> str:
    folder = RUNS / "teacher"
    if not (folder / "final").is_dir():
        script = Path(__file__).parents[2] / "examples" / "train_demo_teacher.py"
        arguments = ("--output_dir", str(folder), *DEEP_TEACHER, "--warmup_steps", "100", "--eval_strategy", "no")
        subprocess.run([sys.executable, str(script), *arguments], check=True)
    return str(folder / "final")


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


def train_all() -> dict[str, Any]:
    """Perplexity on test text after each budget, by group, seed and subnet; what is missing is trained."""
    for seed, number in product(range(SEEDS), range(SUBNETS)):
        for teacher, share, granularity in product(TEACHERS, BINS, GRANULARITIES):
            if teacher == "deep" and not (RUNS / "teacher" / "final").is_dir():
                continue
            path = RUNS / "trained" / f"{teacher}-{share}-{granularity}.json"
            known, run = _known(path), run_of(teacher)
            subnet, before = near_good(teacher, share, granularity)[number]
            key = f"{subnet.digest} {seed}"
            if key in known:
                continue
            started = time.perf_counter()
            order = torch.randperm(len(run.blocks["train"]), generator=torch.Generator().manual_seed(seed)).tolist()
            ends = {}
            for name, steps in BUDGETS.items():
                config = ProbeConfig(steps=steps, batch_size=8, learning_rate=LEARNING_RATE, seed=seed)
                blocks = run.blocks["train"].select(order[: steps * 8])
                ends[name] = Probe(run.supernet, blocks, run.blocks["test"], config)(subnet)
            known[key] = {"subnet": subnet.to_dict(), "before": before, **ends}
            write_text(path, json.dumps(known))
            print(path.stem, number, round(before, 2), ends, f"{time.perf_counter() - started:.0f} s", flush=True)
    return {}


if __name__ == "__main__":
    train_all()
