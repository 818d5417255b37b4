"""Experiment 8: searches of the paper's super-networks and bins, Pythia-6.9B and 12B, without their weights.

How many candidates each space gives a second, all that a search does counted but the model. How near searches come to
the best of a made-up fitness, after how many evaluations. And the FLOPs of whole searches of the 12B one, by
`hf-whittle plan`.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GPTNeoXConfig

from hf_whittle import (
    AdditiveSearchConfig,
    EvolutionConfig,
    ParameterBin,
    RandomSearchConfig,
    SearchSpace,
    SubnetConfig,
    search_subnets,
)
from hf_whittle.demo import TEACHER
from hf_whittle.plan import plan_recipe
from hf_whittle.recipe import Recipe
from hf_whittle.search.algorithm import SearchConfig
from hf_whittle.subnet import Kept, Shape, indices

from .lab import Lab

SHAPES = {"Pythia-6.9B": (50432, 4096, 32, 32), "Pythia-12B": (50688, 5120, 36, 40)}
"""Entries of the vocabulary, channels, layers and heads; four times as many neurons as channels."""
BINS = {"410M": (385e6, 426e6), "1B": (961e6, 1062e6), "2.8B": (2636e6, 2914e6)}
"""The paper's bins, 5% around models of Pythia."""
SPACES = [(granularity, layer_wise) for granularity in ("coarse", "fine") for layer_wise in (False, True)]
FIRST = 50
"""Candidates of the evolution's beginning and of each of its generations, the paper's numbers."""
CODE = ("search", "space", "cost", "plan", "healing", "paper.scalability")
SEARCH_TOKENS, CALIBRATION_TOKENS = 4096, 131_072


class Worth:
    """A made-up fitness of a subnet, the lower the better: what its layers, heads, neurons and channels are worth.

    Units have worths of their own, spread like those of real importance scores, and the entries of a dimension lose
    more the more of them are left out. A layer without its neighbor loses more than both alone.

    Args:
        config (`GPTNeoXConfig`): the super-network's.
        seed (`int`): seed of the worths.
    """

    def __init__(self, config: GPTNeoXConfig, seed: int):
        rng, shape = np.random.default_rng(seed), Shape.from_config(config)
        layers = shape.num_hidden_layers
        self.settings = {"name": "worth", "seed": seed}
        self.seconds = 0.0
        self._layers = _shares(rng, layers) * 3
        self._channels = _shares(rng, config.hidden_size)
        self._heads = [_shares(rng, config.num_attention_heads) for _ in range(layers)]
        self._neurons = [_shares(rng, config.intermediate_size) for _ in range(layers)]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        started = time.process_time()
        lost = self._layers.copy()
        for position, layer in enumerate(subnet.layers):
            heads = _lost(self._heads[layer], _of(subnet.num_attention_heads, position))
            neurons = _lost(self._neurons[layer], _of(subnet.intermediate_size, position))
            lost[layer] *= 0.4 * heads + 0.6 * neurons
        value = lost.sum() + 4 * (lost[1:] * lost[:-1]).sum() + 2 * _lost(self._channels, subnet.hidden_size)
        self.seconds += time.process_time() - started
        return float(np.exp(2.5 + value))


def _shares(rng: np.random.Generator, number: int) -> np.ndarray:
    worths = rng.lognormal(size=number)
    return worths / worths.sum()


def _lost(worths: np.ndarray, kept: Kept) -> float:
    """Worth of what is left out, `0` to `1`, more than in proportion."""
    first = worths[:kept] if isinstance(kept, int) else worths[list(indices(kept))]
    return float(max(0.0, 1 - first.sum()) ** 1.5)


def _of(kept: Any, position: int) -> Kept:
    """Entries that a layer keeps, which all layers may share."""
    found: Kept = kept if isinstance(kept, int) else kept[position]
    return found


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each part."""
    is_tiny = lab.size.name == "tiny"
    results: dict[str, Any] = {"speed": [], "convergence": [], "plans": []}

    def add(part: str, work: Callable[..., list[dict[str, Any]]], *arguments: Any) -> dict[str, Any]:
        settings = {"part": part, "arguments": arguments}
        facts = lab.cache.once("scalability", settings, CODE, lambda: {"rows": work(*arguments)})
        results[part].extend(facts["rows"])
        return results

    for name in SHAPES:
        for bin_name in BINS:
            yield add("speed", _speed, name, bin_name, 5 if is_tiny else 150)
    for seed in range(lab.size.repeats):
        yield add("convergence", _convergence, "Pythia-6.9B", "1B", 60 if is_tiny else 5050, seed)
    for bin_name in () if is_tiny else BINS:
        yield add("plans", _plans, "Pythia-12B", bin_name)


def config_of(name: str) -> GPTNeoXConfig:
    vocabulary, channels, layers, heads = SHAPES[name]
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * channels,
        max_position_embeddings=2048,
        architectures=["GPTNeoXForCausalLM"],
    )


def _evolution(evaluations: int, seed: int = 0) -> EvolutionConfig:
    generations = max(0, evaluations - FIRST) // FIRST
    return EvolutionConfig(generations=generations, population_size=min(FIRST, evaluations), seed=seed)


def _speed(name: str, bin_name: str, evaluations: int) -> list[dict[str, Any]]:
    """Candidates a second of an evolution in each space, without its fitness."""
    config, rows = config_of(name), []
    for granularity, layer_wise in SPACES:
        space = SearchSpace.from_config(config, granularity, layer_wise)
        bin, worth, started = ParameterBin(*BINS[bin_name]), Worth(config, 0), time.process_time()
        evolution = _evolution(evaluations)
        found = search_subnets(None, space, bin=bin, config=evolution, fitness=worth, progress=False)
        seconds = time.process_time() - started - worth.seconds
        row = {"supernet": name, "bin": bin_name, "granularity": granularity, "layer_wise": layer_wise}
        rows.append({**row, "per_second": round(len(found.evaluations) / seconds, 1)})
    return rows


def _convergence(name: str, bin_name: str, evaluations: int, seed: int) -> list[dict[str, Any]]:
    """The lowest fitness of each search after some numbers of evaluations, in the coarse layer-wise space."""
    config = config_of(name)
    space = SearchSpace.from_config(config, "coarse", layer_wise=True)
    searches: dict[str, SearchConfig] = {
        "evolution, the paper's": _evolution(evaluations, seed),
        "additive": AdditiveSearchConfig(seed=seed),
        "random": RandomSearchConfig(evaluations=evaluations, seed=seed),
    }
    rows = []
    for search, settings in searches.items():
        found = search_subnets(
            None,
            space,
            bin=ParameterBin(*BINS[bin_name]),
            config=settings,
            fitness=Worth(config, seed),
            progress=False,
        )
        best = found.best_so_far()
        after = {str(n): round(best[n - 1], 3) for n in (50, 550, 5050) if n < len(best)} | {
            str(len(best)): round(best[-1], 3)
        }
        rows.append({"search": search, "seed": seed, "supernet": name, "bin": bin_name, "best_after": after})
    return rows


def _plans(name: str, bin_name: str) -> list[dict[str, Any]]:
    """FLOPs of two searches, as `hf-whittle plan` tells them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        shutil.copytree(TEACHER, teacher, ignore=shutil.ignore_patterns("*.safetensors"))
        config_of(name).save_pretrained(teacher)
        low, high = BINS[bin_name]
        for label, search in {
            "evolution by perplexity, the paper's": {"algorithm": "evolution", "fitness": "perplexity"},
            "additive by healed perplexity": {"algorithm": "additive", "fitness": "healed-perplexity"},
        }.items():
            recipe = Recipe.from_dict(
                {
                    "teacher": str(teacher),
                    "output_dir": str(Path(folder, "out")),
                    "supernet_options": {"dtype": "bfloat16"},
                    "data": {
                        "dataset": "python-standard-library",
                        "search_tokens": SEARCH_TOKENS,
                        "calibration_tokens": CALIBRATION_TOKENS,
                        "block_size": 2048,
                    },
                    "bin": {"low": low, "high": high},
                    "space": {"granularity": "coarse", "layer_wise": True},
                    "search": search,
                    "heal": False,
                    "baseline": False,
                    "training": {"max_steps": 1},
                }
            )
            stage = plan_recipe(recipe).stage("search")
            row = {"supernet": name, "bin": bin_name, "search": label, "evaluations": stage.evaluations}
            rows.append({**row, "flops": stage.flops, "likely_flops": stage.likely_flops})
    return rows
