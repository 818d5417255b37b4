"""Evolutionary search: its candidates, and its use of their fitness."""

import math
import re
from random import Random

import pytest
from fixtures_search import ALL_OF_FEW, BIN, CONFIG, FEW

from hf_whittle import EvolutionConfig, ParameterBin, SearchResult, SearchSpace, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.errors import BinError, DataError, SubnetError
from hf_whittle.search.algorithms.evolution import EvolutionarySearch

SETTINGS = EvolutionConfig(generations=4, population_size=10, num_offspring=8, num_elites=3, seed=1)
KINDS = [(granularity, layer_wise) for granularity in ("coarse", "fine") for layer_wise in (False, True)]


def toy_fitness(subnet):
    """Prefers wide models of few layers; ties are rare."""
    shape = subnet.shape
    return 1000 / shape.hidden_size + shape.num_hidden_layers + sum(shape.intermediate_size) / 7919


def search(space=None, fitness=toy_fitness, bin=BIN, config=SETTINGS, **options):
    space = space or SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    return search_subnets(None, space, bin=bin, config=config, fitness=fitness, progress=False, **options)


@pytest.mark.parametrize(("granularity", "layer_wise"), KINDS)
def test_every_candidate_is_new_and_lies_in_the_bin(granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    result = search(space)
    subnets = [evaluation.subnet for evaluation in result.evaluations]
    assert len(set(subnets)) == len(subnets)
    assert all(space.contains(subnet) and BIN.contains(CONFIG, subnet) for subnet in subnets)


def test_every_evaluation_says_what_was_found():
    for evaluation in search().evaluations:
        assert evaluation.fitness == toy_fitness(evaluation.subnet)
        assert evaluation.parameters == num_parameters(CONFIG, evaluation.subnet)


def test_generations_have_the_sizes_asked_for():
    generations = [evaluation.generation for evaluation in search().evaluations]
    assert generations == [0] * 10 + [1] * 8 + [2] * 8 + [3] * 8 + [4] * 8


def test_paper_settings_are_the_defaults():
    assert EvolutionarySearch(None, BIN, EvolutionConfig()).max_evaluations == 5050


def test_parents_are_the_elites_of_all_earlier_generations():
    result = search()
    for evaluation in result.evaluations:
        earlier = [e for e in result.evaluations if e.generation < evaluation.generation]
        elites = {e.subnet.digest for e in sorted(earlier, key=lambda e: e.fitness)[:3]}
        assert set(evaluation.parents) <= elites
        assert len(evaluation.parents) == {"sample": 0, "mutation": 1, "crossover": 2}[evaluation.origin]
    assert {evaluation.origin for evaluation in result.evaluations[:10]} == {"sample"}


@pytest.mark.parametrize(("rate", "origin"), [(1.0, "mutation"), (0.0, "crossover")])
def test_mutation_rate_decides_how_offspring_come_about(rate, origin):
    config = EvolutionConfig(generations=3, population_size=10, num_offspring=8, mutation_rate=rate)
    origins = {evaluation.origin for evaluation in search(config=config).evaluations if evaluation.generation}
    assert origins <= {origin, "sample"}
    assert origin in origins


@pytest.mark.slow
def test_search_beats_as_many_random_draws():
    config = EvolutionConfig(generations=20, population_size=20, num_offspring=20, num_elites=5)
    result = search(config=config)
    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    rng = Random(0)
    random_best = min(toy_fitness(space.sample(rng, BIN)) for _ in range(len(result.evaluations)))
    assert result.best_evaluation.fitness < random_best


def test_same_seed_gives_the_same_search_and_another_one_another():
    assert search().evaluations == search().evaluations
    assert search(config=EvolutionConfig(4, 10, 8, 3, seed=2)).evaluations != search().evaluations


def test_exhausted_space_ends_the_search_early():
    result = search(FEW, bin=ParameterBin(0, 1e9), config=EvolutionConfig(population_size=3, num_offspring=5))
    found = {evaluation.subnet for evaluation in result.evaluations}
    assert found == ALL_OF_FEW
    assert len(result.evaluations) == 4


def test_fitness_that_is_not_a_number_is_the_worst(tmp_path):
    def often_nan(subnet):
        return math.nan if subnet.shape.num_hidden_layers % 2 else toy_fitness(subnet)

    result = search(fitness=often_nan, output_dir=tmp_path)
    odd = [e for e in result.evaluations if e.subnet.shape.num_hidden_layers % 2]
    assert odd
    assert all(evaluation.fitness == math.inf for evaluation in odd)
    assert math.isfinite(result.best_evaluation.fitness)
    assert SearchResult.load(tmp_path).evaluations == result.evaluations


def test_search_whose_fitness_is_never_a_number_still_ends():
    result = search(fitness=lambda subnet: math.nan)
    assert len(result.evaluations) == 42
    assert result.best == result.evaluations[0].subnet


def test_search_on_a_super_network_finds_the_subnet_of_lowest_perplexity(supernet, input_ids):
    from hf_whittle.fitness.perplexity import Perplexity

    space = SearchSpace.from_config(supernet.config)
    config = EvolutionConfig(generations=1, population_size=4, num_offspring=3)
    result = search_subnets(supernet, space, bin=BIN, eval_dataset=input_ids, config=config, progress=False)
    perplexity = Perplexity(supernet, input_ids)
    assert [e.fitness for e in result.evaluations] == [perplexity(e.subnet) for e in result.evaluations]
    assert result.best_evaluation.fitness == min(perplexity(e.subnet) for e in result.evaluations)


# Errors


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"generations": -1}, "generations must be at least 0, got -1"),
        ({"population_size": 0}, "population_size must be at least 1, got 0"),
        ({"num_offspring": 0}, "num_offspring must be at least 1, got 0"),
        ({"num_elites": 0}, "num_elites must be at least 1, got 0"),
        ({"mutation_rate": 1.5}, "mutation_rate must lie between 0 and 1, got 1.5"),
    ],
)
def test_setting_out_of_range_is_an_error(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvolutionConfig(**setting)


def test_empty_bin_is_an_error():
    with pytest.raises(BinError, match="no subnet of this space lies in the bin 1,000,000,000 to 2,000,000,000"):
        search(bin=ParameterBin(1e9, 2e9))


def test_search_of_a_stock_model_is_an_error_that_says_how_to_load_it(stock, input_ids):
    space = SearchSpace.from_config(stock.config)
    message = "a GPTNeoXForCausalLM has no subnets to search; load the checkpoint with AutoSuperNetForCausalLM"
    with pytest.raises(SubnetError, match=message):
        search_subnets(stock, space, bin=BIN, eval_dataset=input_ids)


def test_search_without_text_is_an_error(supernet):
    space = SearchSpace.from_config(supernet.config)
    with pytest.raises(DataError, match="give a supernet and an eval_dataset, or a fitness of your own"):
        search_subnets(supernet, space, bin=BIN)
