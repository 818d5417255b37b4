"""Seconds and peak memory of a candidate: slices against their students, and each fitness against perplexity."""

import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
from transformers.utils.import_utils import enable_tf32

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    ParameterBin,
    Perplexity,
    Probe,
    ProbeConfig,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
)
from hf_whittle.cost import num_parameters

from .comparing import use_ieee
from .inner import cross_entropy
from .measuring import Rows, attempt, compare, peak_megabytes
from .sizes import SIZES, build, random_blocks

PRECISIONS = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16}


def cases() -> dict[str, Callable[[], Rows]]:
    names = [(name, precision) for name, _ in SIZES.models for precision in PRECISIONS]
    slices = {f"slices of {name} in {precision}": partial(_slices, name, precision) for name, precision in names}
    return {f"fitnesses of {name}": partial(_fitnesses, name) for name, _ in SIZES.models} | slices


def _supernet(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return build(GPTNeoXSuperNetForCausalLM, dict(SIZES.models)[name], dtype).eval()


def _candidates(supernet: Any, granularity: Any) -> list[SubnetConfig]:
    """Draws of about half of the parameters."""
    half = num_parameters(supernet.config) / 2
    space, rng = SearchSpace.from_config(supernet.config, granularity, layer_wise=True), Random(0)
    return [space.sample(rng, ParameterBin(0.95 * half, 1.05 * half)) for _ in range(SIZES.candidates)]


def _evaluate(fitness: Callable[[SubnetConfig], float], candidates: list[SubnetConfig]) -> None:
    for candidate in candidates:
        fitness(candidate)


def _slices(name: str, precision: str) -> Rows:
    """Candidates by perplexity, and their extracted students, whose cost slicing should come near to."""
    enable_tf32(precision == "TF32")
    try:
        supernet = _supernet(name, PRECISIONS[precision])
        blocks = random_blocks(*SIZES.search_blocks)
        coarse, fine = (_candidates(supernet, granularity) for granularity in ("coarse", "fine"))
        student = extract_subnet(supernet, coarse[0]).eval()
        fitness = Perplexity(supernet, blocks)
        functions = {
            "extracted student": partial(_evaluate, lambda _: cross_entropy(student, blocks), coarse),
            "the same slice": partial(_evaluate, fitness, coarse[:1] * len(coarse)),
            "coarse candidates": partial(_evaluate, fitness, coarse),
            "fine candidates": partial(_evaluate, fitness, fine),
            "activating alone, fine": partial(_activate, supernet, fine),
            "full model": partial(_evaluate, lambda _: cross_entropy(supernet, blocks), coarse),
        }
        rows = compare(functions, SIZES.repeats, per=len(coarse))
        for row in rows.values():
            if row.get("seconds"):
                row["candidates_per_second"] = round(1 / row["seconds"], 2)
        return rows
    finally:
        use_ieee()


def _activate(supernet: Any, candidates: list[SubnetConfig]) -> None:
    for candidate in candidates:
        with supernet.active_subnet(candidate):
            pass


def _fitnesses(name: str) -> Rows:
    """Each fitness of coarse candidates in single precision, and the cost of its preparation."""
    supernet = _supernet(name)
    length = SIZES.search_blocks[1]
    blocks, calibration = random_blocks(*SIZES.search_blocks), random_blocks(SIZES.calibration_blocks, length, seed=1)
    candidates = _candidates(supernet, "coarse")[:2]
    steps = ProbeConfig(steps=4, batch_size=SIZES.calibration_blocks // 4)
    kinds: dict[str, Callable[[], Any]] = {
        "perplexity": lambda: Perplexity(supernet, blocks),
        "kl": lambda: KLDivergence(supernet, blocks),
        "probe of 4 steps": lambda: Probe(supernet, calibration, blocks, steps),
        "healed-perplexity": lambda: HealedPerplexity(supernet, blocks, calibration, batch_size=4),
    }
    rows: Rows = {}
    first: list[float] = []
    for kind, make in kinds.items():
        rows[kind] = attempt(partial(_one_fitness, make, candidates, first))
    return rows


def _one_fitness(make: Callable[[], Any], candidates: list[SubnetConfig], first: list[float]) -> dict[str, Any]:
    made: list[Any] = []
    started = time.perf_counter()
    preparing = peak_megabytes(lambda: made.append(make()))
    seconds = time.perf_counter() - started
    row = compare({"only": partial(_evaluate, made[0], candidates)}, 2, per=len(candidates))["only"]
    row |= {"preparation_seconds": round(seconds, 3), "preparation_peak_megabytes": round(preparing, 1)}
    if "seconds" in row:
        first.append(row["seconds"])
        row["ratio_to_first"] = round(first[-1] / first[0], 3)
    return row
