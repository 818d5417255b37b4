"""Candidates in a bin per second: constructive sampling against drawing sizes freely and rejecting.

Shapes of Pythia-410M, and of Pythia-6.9B and 12B with the paper's bins: 5% around Pythia-410M, 1B and 2.8B. Rejection
draws every size uniformly from the same ranges and keeps what falls into the bin; its counting alone is timed, while
sampling draws the indices of fine-grained subnets too.
"""

import time
from random import Random
from types import SimpleNamespace
from typing import Any

from hf_whittle.cost import ParameterBin, parameter_polynomial
from hf_whittle.space.search_space import SearchSpace
from hf_whittle.subnet import Shape

PAPERS_BINS = [ParameterBin(385e6, 426e6), ParameterBin(961e6, 1062e6), ParameterBin(2636e6, 2914e6)]
SHAPES = {
    "pythia-410m": ((50304, 1024, 24, 16, 4096), [ParameterBin(150e6, 165e6)]),
    "pythia-6.9b": ((50432, 4096, 32, 32, 16384), PAPERS_BINS),
    "pythia-12b": ((50688, 5120, 36, 40, 20480), PAPERS_BINS),
}


def measure() -> dict[str, Any]:
    return {
        f"{name}, {bin.low / 1e6:g}M to {bin.high / 1e6:g}M, {granularity}, {law}":
            _compare(shape, bin, granularity, law == "layer-wise")
        for name, (shape, bins) in SHAPES.items()
        for bin in bins
        for granularity in ("coarse", "fine")
        for law in ("uniform", "layer-wise")
    }  # fmt: skip


def _compare(shape: tuple, bin: ParameterBin, granularity: str, layer_wise: bool) -> dict[str, float]:
    vocabulary, channels, layers, heads, neurons = shape
    config: Any = SimpleNamespace(
        model_type="gpt_neox",
        vocab_size=vocabulary,
        hidden_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        tie_word_embeddings=False,
        attention_bias=True,
    )
    space = SearchSpace.from_config(config, granularity, layer_wise)
    rng = Random(0)
    space.sample(rng, bin)  # finds the reachable sizes once
    drawn = _for_a_second(lambda: bin.contains(config, space.sample(rng, bin)))
    tried = _for_a_second(lambda: _rejection(space, rng, layer_wise, bin))
    return {
        "share_in_bin": sum(drawn) / len(drawn),
        "per_second": len(drawn),
        "rejection_share_in_bin": sum(tried) / len(tried),
        "rejection_per_second": sum(tried),
    }


def _rejection(space: SearchSpace, rng: Random, layer_wise: bool, bin: ParameterBin) -> bool:
    layers = rng.choice(space.num_hidden_layers)
    times = layers if layer_wise else 1
    heads = [rng.choice(space.num_attention_heads) for _ in range(times)] * (layers // times)
    neurons = [rng.choice(space.intermediate_size) for _ in range(times)] * (layers // times)
    shape = Shape(rng.choice(space.hidden_size), tuple(heads), tuple(neurons))
    return bin.low <= parameter_polynomial(space.config)(shape) <= bin.high


def _for_a_second(function: Any) -> list[bool]:
    end = time.perf_counter() + 1
    results = []
    while time.perf_counter() < end:
        results.append(function())
    return results
