"""Search algorithms on the demo's teacher: fitness for evaluated tokens, against the paper's evolutionary search.

The demo's bin and its search text of 4,096 tokens; fitness is perplexity before training. Three seeds of each, fewer
where `SEEDS` says so. It takes some three hours on one core; what was done is kept in `tests/benchmarks/runs` and not
done again.
"""

import os
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from hf_whittle import (
    AdditiveSearchConfig,
    EvolutionConfig,
    LocalSearchConfig,
    MultiFidelityConfig,
    NSGA2Config,
    ParameterBin,
    RandomSearchConfig,
    RegularizedEvolutionConfig,
    SearchResult,
    SearchSpace,
    SurrogateSearchConfig,
    score_importance,
    search_subnets,
)
from hf_whittle.experimental.proxies import (
    GradientNorm,
    JacobianCovariance,
    RetainedImportance,
    Snip,
    Synflow,
    WeightMagnitude,
)
from hf_whittle.experimental.stratified import StratifiedSearchConfig
from hf_whittle.experimental.surrogate_objective import SurrogateObjectiveConfig
from hf_whittle.fitness.divergence import KLDivergence
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs
from hf_whittle.search.algorithms.surrogate import Surrogate

from .teachers import teacher_of

RUNS = Path(__file__).parent / "runs" / "search"
SEEDS = {"fine": 1, "surrogate-boosting": 2, "surrogate-forest": 2, "surrogate-objective": 1, "transfer": 2}
BIN = ParameterBin(800_000, 880_000)
TOKENS = 4096  # of one evaluation on all tokens
PAPER = "evolution"
COARSE: dict[str, Any] = {
    "additive": lambda seed: AdditiveSearchConfig(seed=seed),
    "additive-quarter": lambda seed: AdditiveSearchConfig(seed=seed, score_share=0.25),
    "multi-fidelity": lambda seed: MultiFidelityConfig(seed=seed),
    "surrogate-boosting": lambda seed: SurrogateSearchConfig(seed=seed),
    "surrogate-forest": lambda seed: SurrogateSearchConfig(seed=seed, model="random-forest"),
    "surrogate-objective": lambda seed: SurrogateObjectiveConfig(seed=seed, pool=50),
    "regularized-evolution": lambda seed: RegularizedEvolutionConfig(seed=seed, evaluations=500),
    "nsga2": lambda seed: NSGA2Config(seed=seed, evaluations=500),
    "local": lambda seed: LocalSearchConfig(seed=seed, evaluations=500),
    "stratified-random": lambda seed: StratifiedSearchConfig(seed=seed, evaluations=500, strata=4),
    "random": lambda seed: RandomSearchConfig(seed=seed, evaluations=500),
    PAPER: lambda seed: EvolutionConfig(seed=seed),
}
FINE: dict[str, Any] = {
    "additive": lambda seed: AdditiveSearchConfig(seed=seed),
    "multi-fidelity": lambda seed: MultiFidelityConfig(seed=seed),
    PAPER: lambda seed: EvolutionConfig(seed=seed, generations=19),
}
OTHER_BINS = {"small": ParameterBin(550_000, 600_000), "large": ParameterBin(1_100_000, 1_200_000)}
OTHER_TEACHER = ("--hidden_size", "96", "--num_hidden_layers", "8", "--num_attention_heads", "6", "--max_steps", "600")


def measure() -> dict[str, Any]:
    demo = _demo()
    blocks = demo.blocks["search"]
    fitness = Perplexity(demo.supernet, blocks, batch_size=4)
    results = {}
    for granularity, configs in (("coarse", COARSE), ("fine", FINE)):
        space = SearchSpace.from_config(demo.supernet.config, granularity, layer_wise=True)
        found = {
            name: [
                _search(space, BIN, fitness, config(seed), f"{granularity}/{name}/{seed}")
                for seed in range(SEEDS.get(granularity, SEEDS.get(name, 3)))
            ]
            for name, config in configs.items()
        }
        results[f"{granularity}, layer-wise"] = _compare(found)
        if granularity == "coarse":
            drawn = [one for name in ("random", "stratified-random") for one in found[name]]
            results["kendall tau of surrogates"] = _surrogates(space, drawn)
            results["transfer"] = _transfer(space, fitness, found)
            results["kendall tau with perplexity"] = _proxies(demo, space, found["random"][0])
    results["two processes"] = _processes()
    return results


def _demo(teacher: str | None = None) -> Inputs:
    folder = Path(str(resources.files("hf_whittle"))) / "demo"
    teacher = teacher or str(folder / "teacher")
    return Inputs(Recipe.load(folder / "recipe.yaml", teacher=teacher, output_dir=str(RUNS / "demo")))


def _search(space: SearchSpace, bin: ParameterBin, fitness: Any, config: Any, name: str) -> SearchResult:
    return search_subnets(None, space, bin=bin, fitness=fitness, config=config, output_dir=RUNS / name)


def _compare(found: dict[str, list[SearchResult]]) -> dict[str, Any]:
    """Best fitness and cost of each algorithm, and the cost at which it was as good as the paper's in the end."""
    target = statistics.median(result.best_evaluation.fitness for result in found[PAPER])
    spent = statistics.median(result.tokens for result in found[PAPER])
    rows = {}
    for name, results in found.items():
        needed = [_tokens_to(result, target) for result in results]
        rows[name] = {
            "fitness": [round(result.best_evaluation.fitness, 3) for result in results],
            "median_fitness": round(statistics.median(result.best_evaluation.fitness for result in results), 3),
            "full_evaluations_worth_of_tokens": statistics.median(result.tokens for result in results) / TOKENS,
            "teraflops": round(statistics.median(result.flops for result in results) / 1e12, 3),
            "fitness_after_tokens_of": {
                number: [_fitness_after(result, number * TOKENS) for result in results] for number in (50, 100, 250)
            },
            "evaluations_worth_of_tokens_to_the_papers_median": [n and n / TOKENS for n in needed],
            "times_fewer_tokens_than_the_paper": [n and round(spent / n, 1) for n in needed],
        }
    return rows


def _tokens_to(result: SearchResult, target: float) -> int | None:
    spent = 0
    for evaluation in result.evaluations:
        spent += evaluation.tokens
        if evaluation.is_answer and evaluation.fitness <= target:
            return spent
    return None


def _fitness_after(result: SearchResult, tokens: float) -> float | None:
    spent, best = 0, None
    for evaluation in result.evaluations:
        spent += evaluation.tokens
        if spent > tokens:
            break
        if evaluation.is_answer and (best is None or evaluation.fitness < best):
            best = evaluation.fitness
    return best and round(best, 3)


def _surrogates(space: SearchSpace, drawn: list[SearchResult]) -> dict[str, Any]:
    """Rank correlation on 500 held-out draws, of surrogates fitted on 20, 100 and 1,000 others; five orders."""
    answers = list({answer.subnet: answer for result in drawn for answer in result.answers}.values())
    rows: dict[str, Any] = {}
    for model in ("gradient-boosting", "random-forest"):
        surrogate = Surrogate(space, BIN, model)
        described = surrogate.describe([answer.subnet for answer in answers])
        fitness = np.array([answer.fitness for answer in answers])
        for number in (20, 100, 1000):
            taus = []
            for seed in range(5):
                order = np.random.default_rng(seed).permutation(len(answers))
                held_out, fitted = order[:500], order[500 : 500 + number]
                surrogate.fit(described[fitted], fitness[fitted])
                taus.append(kendalltau(surrogate.predict(described[held_out]), fitness[held_out]).statistic)
            rows.setdefault(model, {})[number] = _spread(taus)
    return rows


def _transfer(space: SearchSpace, fitness: Perplexity, found: dict[str, list[SearchResult]]) -> dict[str, Any]:
    """Surrogates that learn from draws in other bins and of another teacher: rank correlation and searches."""
    config = RandomSearchConfig(evaluations=300, seed=100)
    other = _demo(teacher_of(RUNS / "teacher", *OTHER_TEACHER, "--warmup_steps", "60"))
    other_space = SearchSpace.from_config(other.supernet.config, layer_wise=True)
    other_fitness = Perplexity(other.supernet, other.blocks["search"], batch_size=4)
    archives = {
        "demo bin": _search(space, BIN, fitness, config, "transfer/demo"),
        **{f"{name} bin": _search(space, bin, fitness, config, f"transfer/{name}") for name, bin in OTHER_BINS.items()},
        "other teacher": _search(
            other_space, ParameterBin(450_000, 500_000), other_fitness, config, "transfer/teacher"
        ),
    }
    rows: dict[str, Any] = {"leave-one-out kendall tau": {}}
    for name, archive in archives.items():
        others = [one for other_name, one in archives.items() if other_name != name]
        rows["leave-one-out kendall tau"][name] = _leave_one_out(
            other_space if name == "other teacher" else space, archive, others
        )
    folders = [str(RUNS / f"transfer/{name}") for name in ("small", "large", "teacher")]
    with_archives = [
        _search(space, BIN, fitness, SurrogateSearchConfig(seed=seed, archives=folders), f"coarse/transfer/{seed}")
        for seed in range(SEEDS["transfer"])
    ]
    rows["searches"] = _compare(
        {"with archives": with_archives, "without": found["surrogate-boosting"], PAPER: found[PAPER]}
    )
    without = statistics.median(result.best_evaluation.fitness for result in found["surrogate-boosting"])
    needed = [_tokens_to(result, without) for result in with_archives]
    rows["evaluations to what the search without them ends with"] = [n and n / TOKENS for n in needed]
    return rows


def _leave_one_out(space: SearchSpace, archive: SearchResult, others: list[SearchResult]) -> dict[str, float]:
    answers = archive.answers
    fitness = [answer.fitness for answer in answers]
    rows = {}
    for own in (0, 20, 100):
        for name, known in (("own alone", []), ("with the others", others)):
            if own or known:
                surrogate = Surrogate(space, BIN, archives=known)
                described = surrogate.describe([answer.subnet for answer in answers])
                surrogate.fit(described[:own], fitness[:own])
                tau = kendalltau(surrogate.predict(described[100:]), fitness[100:]).statistic
                rows[f"{own} of its own, {name}"] = round(float(tau), 3)
    return rows


def _proxies(demo: Inputs, space: SearchSpace, drawn: SearchResult) -> dict[str, Any]:
    """Rank correlation of proxies with perplexity on 100 draws, and their seconds against those of perplexity."""
    supernet, blocks = demo.supernet, demo.blocks["search"].select(range(4))
    scores = score_importance(supernet, demo.blocks["search"], progress=False)
    known = drawn.answers[:100]
    proxies = {
        "perplexity, a quarter of the tokens": Perplexity(supernet, blocks, 4),
        "kl, a quarter of the tokens": KLDivergence(supernet, blocks, 4),
        "magnitude": WeightMagnitude(supernet),
        "importance": RetainedImportance(scores),
        "gradient-norm": GradientNorm(supernet, blocks, 4),
        "snip": Snip(supernet, blocks, 4),
        "synflow": Synflow(supernet),
        "jacobian-covariance": JacobianCovariance(supernet, blocks, 4),
    }
    whole = Perplexity(supernet, demo.blocks["search"], 4)
    started = time.perf_counter()
    for answer in known[:20]:
        whole(answer.subnet)
    unit = (time.perf_counter() - started) / 20
    rows = {}
    for name, proxy in proxies.items():
        started = time.perf_counter()
        values = [proxy(answer.subnet) for answer in known]
        seconds = (time.perf_counter() - started) / len(known)
        tau = kendalltau(values, [answer.fitness for answer in known]).statistic
        rows[name] = {"tau": round(float(tau), 3), "time_of_perplexity": round(seconds / unit, 3)}
    return rows


def _processes() -> dict[str, float]:
    """Candidates a second of two processes against one, each with one thread: medians of three runs in turn.

    Two searches that know nothing of each other say what the machine's two cores can do at most.
    """
    script = str(Path(__file__).with_name("search_on_processes.py"))
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    commands = {
        "one": [[*launched, "1", script]],
        "two": [[*launched, "2", script]],
        "two apart": [[sys.executable, script], [sys.executable, script]],
    }
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3):
        for name, together in commands.items():
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started = [subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, text=True) for one in together]
            printed = [process.communicate()[0] for process in started]
            rates[name].append(sum(float(text.split("per second ")[1].split()[0]) for text in printed))
    one, two, apart = (statistics.median(rates[name]) for name in commands)
    return {
        "one_per_second": round(one, 2),
        "two_per_second": round(two, 2),
        "two_apart_per_second": round(apart, 2),
        "ratio": round(two / one, 2),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}
