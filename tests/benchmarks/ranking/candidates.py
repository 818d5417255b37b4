"""Subnets of a study: near-good ones, or ones spread over all that a search evaluates."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from hf_whittle import AdditiveSearchConfig, EvolutionConfig, ParameterBin, SearchSpace, SubnetConfig, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.fitness.base import Fitness
from hf_whittle.search.algorithm import Evaluation, SearchConfig

from .rows import Row
from .settings import RUNS, Material, Setting

NEAR_GOOD = {
    "additive": AdditiveSearchConfig(
        generations=0, answers=10, head_options=2, neuron_options=3, channel_options=3, levels=12
    ),
    "evolution": EvolutionConfig(population_size=20, generations=2, num_offspring=12, num_elites=5),
}
"""Searches of near-good subnets, in each space."""
WORST = 2.0  # fitness of a near-good subnet over the lowest of its bin
WIDE = EvolutionConfig(population_size=60, generations=4, num_offspring=20, num_elites=10)
"""Search of subnets of any quality."""
MUTANTS = {True: 16, False: 40}  # of near-good subnets, or of any, in each bin and space
FARTHEST = 6  # mutations

Pool = dict[str, list[tuple[float, Row]]]
"""Fitness and rows of subnets by group."""


def candidates(setting: Setting, material: Material, fitness: Fitness) -> Iterator[Row]:
    """Choose subnets by a fitness, those of all groups in turn; any first ones are of all qualities."""
    pool: Pool = {}
    for name, space in setting.spaces(material).items():
        for group, found in _pool(setting, material, fitness, name, space).items():
            pool.setdefault(group, []).extend(found)
    return _in_turn(chosen(found, setting.subnets, setting.near_good) for found in pool.values())


def chosen(found: list[tuple[float, Row]], number: int, near_good: bool) -> list[Row]:
    """Subnets spread evenly over the pool in the order of fitness, in an order in which any first ones are so too."""
    found = sorted({row.subnet: (value, row) for value, row in found}.values(), key=lambda each: each[0])
    if near_good:
        found = [each for each in found if each[0] <= WORST * found[0][0]]
    rows = [row for _, row in spread(found, number)]
    return [rows[index] for index in sorted(range(len(rows)), key=lambda i: i * 0.6180339887 % 1.0)]


def _pool(setting: Setting, material: Material, fitness: Fitness, name: str, space: SearchSpace) -> Pool:
    """Answers of the searches in a space, and evaluated mutations of these."""
    pool: Pool = {}
    for origin, config in (NEAR_GOOD if setting.near_good else {"evolution": WIDE}).items():
        answers = _answers(setting, material, space, fitness, config, f"{name}-{origin}")
        for bin, found in zip(setting.bins, answers, strict=True):
            group = setting.group(bin, name)
            rows = [(e.fitness, Row(group, name, f"{origin} search by {fitness.name}", e.subnet)) for e in found]
            pool.setdefault(group, []).extend(rows)
    for bin in setting.bins:
        found_rows = sorted(pool[setting.group(bin, name)], key=lambda each: each[0])
        most = WORST * found_rows[0][0] if setting.near_good else float("inf")
        parents = [row.subnet for value, row in found_rows if value <= most]
        for mutant in mutations(space, parameter_bin(material, bin), parents, MUTANTS[setting.near_good]):
            row = Row(setting.group(bin, name), name, f"mutation, search by {fitness.name}", mutant)
            pool[row.group].append((fitness(mutant), row))
    return pool


def parameter_bin(material: Material, bin: tuple[float, float]) -> ParameterBin:
    full = num_parameters(material.supernet.config)
    return ParameterBin(bin[0] * full, bin[1] * full)


def _answers(
    setting: Setting, material: Material, space: SearchSpace, fitness: Fitness, config: SearchConfig, folder: str
) -> list[list[Evaluation]]:
    """Evaluations of a search of all bins, in each of them."""
    result = search_subnets(
        material.supernet,
        space,
        bin=[parameter_bin(material, bin) for bin in setting.bins],
        config=config,
        fitness=fitness,
        output_dir=RUNS / "searches" / f"{setting.name}-{fitness.name}-{folder}",
        progress=False,
    )
    print(folder, len(result.evaluations), "evaluations, best", round(result.best_evaluation.fitness, 2), flush=True)
    return [result.in_bin(index).answers for index in range(len(setting.bins))]


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """Some of the items, evenly spread from the first to the last."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, number - 1))] for i in range(number)]


def mutations(
    space: SearchSpace, bin: ParameterBin, parents: Sequence[SubnetConfig], number: int
) -> list[SubnetConfig]:
    """Subnets some mutations away from the parents."""
    rng = random.Random(0)
    found = []
    for index in range(number):
        subnet = parents[index % len(parents)]
        for _ in range(rng.randint(1, FARTHEST)):
            subnet = space.mutate(subnet, rng, bin)
        found.append(subnet)
    return found


def _in_turn(lists: Iterable[Sequence[Row]]) -> Iterator[Row]:
    """The first of every list, then the second of every list, and so on."""
    yield from (row for rows in zip_longest(*lists) for row in rows if row is not None)
