"""Subnets of a study: near-good ones from several searches, or ones spread over all that a search evaluates."""

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

ADDITIVE = AdditiveSearchConfig(
    generations=0, answers=10, head_options=2, neuron_options=3, channel_options=3, levels=12
)
EVOLUTION = EvolutionConfig(population_size=20, generations=2, num_offspring=12, num_elites=5)
NEAR_GOOD = {"additive": (ADDITIVE, 1.0, 4), "evolution": (EVOLUTION, 0.5, 2)}
"""Settings of a search, the share of its answers that is near-good, and the number chosen of a bin and a space."""
WIDE = {"evolution": (EvolutionConfig(population_size=60, generations=4, num_offspring=20, num_elites=10), 1.0, 7)}
"""The same for subnets of any quality."""
MUTATIONS = {True: 2, False: 3}  # of near-good subnets, or of any
FARTHEST = 6  # mutations


def candidates(setting: Setting, material: Material, fitness: Fitness) -> Iterator[Row]:
    """Choose subnets of every bin and space by a fitness; any first ones are of all groups and origins."""
    by_group: dict[str, list[list[Row]]] = {}
    for space_name, space in setting.spaces(material).items():
        for origin, (config, share, number) in (NEAR_GOOD if setting.near_good else WIDE).items():
            answers = _answers(setting, material, space, fitness, config, f"{space_name}-{origin}")
            for bin, found in zip(setting.bins, answers, strict=True):
                group = setting.group(bin, space_name)
                subnets = [e.subnet for e in sorted(found, key=lambda evaluation: evaluation.fitness)]
                origins = {f"{origin} search by {fitness.name}": spread(subnets[: round(share * len(subnets))], number)}
                if (origin == "additive") == setting.near_good:
                    parents = subnets[:4] if setting.near_good else spread(subnets, 9)[1::3]
                    mutants = mutations(space, parameter_bin(material, bin), parents, MUTATIONS[setting.near_good])
                    origins[f"mutation of {origin} search by {fitness.name}"] = mutants
                for name, chosen in origins.items():
                    by_group.setdefault(group, []).append([Row(group, space_name, name, subnet) for subnet in chosen])
    return _in_turn(list(_in_turn(lists)) for lists in by_group.values())


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
