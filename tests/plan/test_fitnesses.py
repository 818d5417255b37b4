"""Costs of fitnesses without a model are those that the fitnesses themselves count."""

from random import Random

import pytest

from hf_whittle.plan.planning import _Planner
from hf_whittle.recipe.sections import BITS_PER_BYTE, FITNESSES
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.search_inputs import SearchInputs


@pytest.mark.parametrize("name", [name for name in FITNESSES if name != BITS_PER_BYTE])
def test_costs_are_those_of_the_fitness(make, name, tmp_path):
    search = {"algorithm": "multi-fidelity", "sizes": [3, 2, 1], "fitness": name}
    if name in ("probe", "staged"):
        search["probe"] = {"steps": 4, "batch_size": 2}
    recipe = make(search=search)
    planner = _Planner(recipe, None, None, False)
    vars(planner)["memories"] = type("", (), {"max_gap": 2})  # there is memory enough
    inputs = SearchInputs(Inputs(recipe), tmp_path, progress=False)
    fitness, planned = inputs.fitness(name), planner.fitnesses
    tokens, flops = planned.preparation(name)
    assert {"tokens": tokens, "flops": flops} == fitness.preparation
    rng = Random(0)
    for share in recipe.search.algorithm.shares:
        assert planned.tokens(name, share) == fitness.tokens(share)
        for _ in range(3):
            subnet = planner.students.space.sample(rng, planner.students.bin)
            assert planned.flops(name, planned.subject(subnet, name), share) == fitness.flops(subnet, share)


def test_costs_of_documents_are_bounded_by_those_of_blocks(make, tmp_path):
    recipe = make(search={"algorithm": "random", "fitness": BITS_PER_BYTE})
    planner = _Planner(recipe, None, None, False)
    vars(planner)["memories"] = type("", (), {"max_gap": 2})
    fitness, planned = SearchInputs(Inputs(recipe), tmp_path, progress=False).fitness(BITS_PER_BYTE), planner.fitnesses
    subnet = planner.students.space.sample(Random(0), planner.students.bin)
    assert planned.tokens(BITS_PER_BYTE) == pytest.approx(fitness.tokens(), rel=0.1)
    flops = fitness.flops(subnet)
    assert flops <= planned.flops(BITS_PER_BYTE, planned.subject(subnet, BITS_PER_BYTE)) <= 2 * flops
