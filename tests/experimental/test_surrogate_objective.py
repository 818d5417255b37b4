"""Evolution on predictions alone: worth more than draws, and the same as one round of the filter where it stops there.

`tests/search` holds it to what every search algorithm keeps to.
"""

import re

import numpy as np
import pytest
from fixtures_search import BIN, CONFIG
from fixtures_surrogates import SPACE, drawn, toy_fitness

from hf_whittle import SearchSpace, SurrogateSearchConfig, search_subnets
from hf_whittle.experimental.surrogate_objective import SurrogateObjectiveConfig

MODELS = ["random-forest", "gradient-boosting"]


def search(space=SPACE, kind=SurrogateObjectiveConfig, **settings):
    config = kind(**{"evaluations": 70, "population_size": 30, "pool": 60, "num_offspring": 10} | settings)
    return search_subnets(None, space, bin=BIN, config=config, fitness=toy_fitness, progress=False)


@pytest.mark.slow
def test_search_beats_as_many_random_draws():
    found = search(inner_generations=4)
    assert len(found.evaluations) == 70
    by_chance = [min(map(toy_fitness, drawn(70, seed))) for seed in range(5)]
    assert found.best_evaluation.fitness < np.median(by_chance)


@pytest.mark.slow
def test_later_batches_are_better_than_the_first():
    fitness = [evaluation.fitness for evaluation in search(inner_generations=4).evaluations]
    assert np.median(fitness[30:]) < np.quantile(fitness[:30], 0.1)


@pytest.mark.slow
def test_one_inner_generation_is_the_surrogate_as_a_filter():
    assert search(inner_generations=1).evaluations == search(kind=SurrogateSearchConfig).evaluations
    assert search(inner_generations=2).evaluations != search(inner_generations=1).evaluations


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
@pytest.mark.parametrize("layer_wise", [False, True])
def test_every_candidate_is_new_and_lies_in_the_bin(granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    subnets = [e.subnet for e in search(space, inner_generations=4, evaluations=50).evaluations]
    assert len(set(subnets)) == len(subnets) == 50
    assert all(space.contains(subnet) and BIN.contains(CONFIG, subnet) for subnet in subnets)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_same_seed_gives_the_same_search_and_another_one_another(model):
    settings = {"model": model, "evaluations": 50, "inner_generations": 4}
    first = search(**settings).evaluations
    assert search(**settings).evaluations == first
    assert search(**settings, seed=1).evaluations != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_generations": 0}, "inner_generations must be at least 1, got 0"),
        ({"pool": 9, "num_offspring": 10}, "pool must be at least num_offspring, 10, got 9"),
    ],
)
def test_setting_out_of_range_is_an_error(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SurrogateObjectiveConfig(**settings)
