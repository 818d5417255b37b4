"""Promises that every search algorithm keeps, and those of each."""

import itertools
import math
import re
from random import Random
from types import SimpleNamespace

import pytest
from fixtures_search import ALL_OF_FEW, BIN, CONFIG, FEW
from small_searches import ALGORITHMS, SPACE, Toy, search, small_config

from hf_whittle import FlopsBin, KVCacheBin, ParameterBin, SearchSpace, SubnetConfig, search_subnets
from hf_whittle.architectures.dimensions import LAYERS
from hf_whittle.cost import num_parameters, parameter_polynomial
from hf_whittle.errors import BinError
from hf_whittle.search.algorithms import AdditiveSearchConfig
from hf_whittle.search.algorithms.additive import additive_scores
from hf_whittle.subnet import Shape

NAMES = sorted(ALGORITHMS)
KINDS = list(itertools.product(("coarse", "fine"), (False, True)))
BINS = [BIN, ParameterBin(21_000, 24_000), ParameterBin(26_000, 28_000)]
each_algorithm = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize(("granularity", "layer_wise"), KINDS)


def batches(result):
    """Evaluations of each batch, in order."""
    return [list(batch) for _, batch in itertools.groupby(result.evaluations, lambda e: e.generation)]


# All algorithms


@pytest.mark.slow_after(13)
@each_algorithm
@each_kind
def test_answers_lie_in_the_bin_and_in_the_space(name, granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    answers = search(name, space=space).answers
    assert answers
    assert all(space.contains(e.subnet) and BIN.contains(CONFIG, e.subnet) for e in answers)


@pytest.mark.slow_after(17)
@each_algorithm
@each_kind
def test_answers_in_a_bin_up_to_the_super_network_lie_in_the_space(name, granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    most = num_parameters(CONFIG)
    answers = search(name, space=space, bin=ParameterBin(0.8 * most, most)).answers
    assert all(space.contains(e.subnet) for e in answers)


@each_algorithm
def test_answers_of_a_stock_space_are_stock(name):
    space = SearchSpace.from_config(CONFIG, stock_only=True)
    assert all(space.contains(e.subnet) for e in search(name, space=space).answers)


@pytest.mark.slow_after(16)
@each_algorithm
@each_kind
def test_nothing_is_evaluated_twice(name, granularity, layer_wise):
    space = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise)
    keys = [e.key for e in search(name, space=space).evaluations]
    assert len(set(keys)) == len(keys)


@each_algorithm
def test_same_seed_gives_the_same_evaluations_and_another_one_others(name):
    first = search(name).evaluations
    assert search(name).evaluations == first
    assert search(name, seed=5).evaluations != first


@each_algorithm
@pytest.mark.parametrize("bin", [BIN, ParameterBin(0, 1e9)])
def test_no_more_is_evaluated_than_announced(name, bin):
    evaluations = search(name, bin=bin).evaluations
    assert 0 < len(evaluations) <= small_config(name).algorithm(SPACE, bin).max_evaluations


@each_algorithm
def test_search_ends_when_the_space_is_exhausted(name):
    evaluations = search(name, space=FEW, bin=ParameterBin(0, 1e9)).evaluations
    assert {e.subnet for e in evaluations if e.origin != "replacement"} == ALL_OF_FEW


@each_algorithm
def test_fitness_that_is_often_not_a_number_is_the_worst(name):
    values = (math.nan, -math.inf, 1e308, math.inf)

    def often_nan(subnet, share=1.0):
        return values[int(subnet.digest, 16) % 4] if int(subnet.digest, 16) % 7 < 5 else Toy()(subnet, share)

    result = search(name, often_nan)
    for e in result.evaluations:
        value = often_nan(e.subnet, e.share)
        assert e.fitness == (value if math.isfinite(value) else math.inf)


@each_algorithm
def test_fitness_that_is_never_a_number_ends(name):
    assert len(search(name, lambda subnet, share=1.0: math.nan).evaluations) >= 15


@each_algorithm
def test_several_bins_are_searched_and_share_evaluations(name):
    result = search(name, bin=BINS)
    keys = [e.key for e in result.evaluations]
    assert len(set(keys)) == len(keys)
    for e in result.evaluations:
        assert e.bins == tuple(i for i, bin in enumerate(BINS) if bin.contains(CONFIG, e.subnet))
    for i in range(len(BINS)):
        assert result.in_bin(i).answers


@each_algorithm
@pytest.mark.parametrize("bin", [FlopsBin(40_000, 44_000, sequence_length=16), KVCacheBin(160, 224)])
def test_bin_of_another_cost_is_searched(name, bin):
    result = search(name, bin=bin)
    assert result.answers
    assert all(bin.contains(CONFIG, e.subnet) for e in result.answers)
    assert all(e.cost == bin.cost(CONFIG)(e.subnet) for e in result.evaluations)


@each_algorithm
def test_nothing_is_printed(name, capfd):
    search(name)
    assert capfd.readouterr() == ("", "")


@each_algorithm
def test_bin_without_a_subnet_is_an_error_before_anything_is_evaluated_or_written(name, tmp_path):
    asked = []

    def fitness(subnet, share=1.0):
        asked.append(subnet)
        return 1.0

    with pytest.raises(BinError, match="no subnet of this space lies in the bin 1 to 2"):
        search(name, fitness, bin=[BIN, ParameterBin(1, 2)], folder=tmp_path / "search")
    assert not asked and not (tmp_path / "search").exists()


# Local search


def test_mutants_are_children_of_the_best_since_the_restart():
    config = {"evaluations": 120, "population_size": 6, "num_neighbors": 4, "patience": 2}
    current, failures, starts = None, 0, 0
    for batch in batches(search("local", **config)):
        best = min(batch, key=lambda e: e.fitness)
        if current is None:
            assert {e.origin for e in batch} == {"sample"}
            starts += 1
        else:
            assert {e.parents for e in batch} == {(current.subnet.digest,)}
        if current is None or best.fitness < current.fitness:
            current, failures = best, 0
        else:
            failures += 1
            if failures == 2:
                current, failures = None, 0
    assert starts > 1


# Regularized evolution


@pytest.mark.parametrize("num_offspring", [1, 4])
def test_parents_are_among_the_youngest(num_offspring):
    made = batches(search("regularized-evolution", evaluations=60, num_offspring=num_offspring))
    for i, batch in enumerate(made[1:], 1):
        alive = {e.subnet.digest for e in [e for earlier in made[:i] for e in earlier][-6:]}
        assert all(set(e.parents) <= alive for e in batch)


def test_tournament_of_all_is_won_by_the_best_alive():
    made = batches(search("regularized-evolution", evaluations=60, tournament_size=6))
    for i, batch in enumerate(made[1:], 1):
        alive = [e for earlier in made[:i] for e in earlier][-6:]
        winner = min(alive, key=lambda e: e.fitness).subnet.digest
        assert all(e.parents == (winner,) for e in batch if e.origin == "mutation")


# Multi-fidelity evolution


@pytest.mark.parametrize("initial", [1, 3])
def test_survivors_of_a_rung_are_the_best_of_the_one_before(initial):
    sizes, shares = [8, 4, 2], [0.125, 0.5, 1.0]
    made = batches(search("multi-fidelity", generations=3, sizes=sizes, shares=shares, initial=initial))
    assert len(made) == 12
    for i, batch in enumerate(made):
        scale = initial if i < 3 else 1
        assert len(batch) == sizes[i % 3] * scale
        assert {e.share for e in batch} == {shares[i % 3]}
        if i % 3:
            ranked = sorted(made[i - 1], key=lambda e: e.fitness)[: len(batch)]
            assert [e.subnet for e in batch] == [e.subnet for e in ranked]


def test_parents_are_elites_on_all_tokens():
    result = search("multi-fidelity", generations=4, num_elites=2)
    for e in result.evaluations:
        earlier = [other for other in result.answers if other.generation < e.generation - e.generation % 3]
        elites = {other.subnet.digest for other in sorted(earlier, key=lambda other: other.fitness)[:2]}
        assert set(e.parents) <= elites
    assert any(e.parents for e in result.evaluations)


# NSGA-II


def fewer_is_worse(subnet, share=1.0):
    return -sum(subnet.shape.intermediate_size) + int(subnet.digest, 16) / 1e15


def test_survivors_that_nothing_dominates_are_the_pareto_front():
    config = small_config("nsga2", evaluations=120, population_size=40)
    made = []

    class Kept(type(config)):
        def algorithm(self, space, bin):
            made.append(super().algorithm(space, bin))
            return made[-1]

    result = search_subnets(None, SPACE, bin=BIN, config=Kept(**vars(config)), fitness=fewer_is_worse, progress=False)
    alive = [one.X for one in made[0]._population]
    points = [(e.cost, e.fitness) for e in alive]
    best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert best == {(e.cost, e.fitness) for e in result.pareto_front("cost")}


# Additive scores

TINY = SimpleNamespace(
    **{**vars(CONFIG), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 4}
)
TINY_SIZES = {
    "coarse uniform": {},
    "coarse layer-wise": {"layer_wise": True},
    "fine uniform": {"granularity": "fine"},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "stock": {"stock_only": True},
    "fine stock": {"granularity": "fine", "stock_only": True},
    "two layers or more": {"granularity": "fine", "layer_wise": True, "num_hidden_layers": range(2, 4)},
}


TINY_LLAMA = SimpleNamespace(
    model_type="llama", vocab_size=99, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, intermediate_size=3, tie_word_embeddings=True, attention_bias=False,
    mlp_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip
ALL_OF_HEADS = {"head_dim": range(2, 5, 2), "num_key_value_groups": range(1, 3)}
LLAMA_SIZES = {
    "llama uniform": {},
    "llama layer-wise": {"granularity": "fine", "layer_wise": True},
    "llama stock": {"stock_only": True},
    "llama all dimensions": {**ALL_OF_HEADS},
    "llama all dimensions layer-wise": {**ALL_OF_HEADS, "granularity": "fine", "layer_wise": True},
}


class AdditiveToy:
    """A sum of a term of each shared size and terms of the layers' sizes, each 0 for the full size."""

    def __init__(self, seed, config):
        rng, self.full = Random(seed), Shape.from_config(config)
        self.left_out = [2 * rng.random() for _ in range(self.full.num_hidden_layers)]
        self.terms = {
            dimension: [[*(rng.random() for _ in range(size - 1)), 0.0] for size in self._sizes(dimension)]
            for dimension in self.full.dimensions
        }

    def _sizes(self, dimension):
        sizes = getattr(self.full, dimension.name)
        return sizes if dimension.per_layer else [sizes]

    def __call__(self, subnet, share=1.0):
        shape = subnet.shape.filled(self.full)
        value = sum(term for layer, term in enumerate(self.left_out) if layer not in subnet.layers)
        for dimension, terms in self.terms.items():
            layers = enumerate(subnet.layers) if dimension.per_layer else [(0, 0)]
            value += sum(terms[layer][shape.size(dimension, position) - 1] for position, layer in layers)
        return value


def all_subnets(space):
    """A subnet of each choice of sizes and layers of the space."""
    per_layer = space.architecture.per_layer
    shared = [dimension for dimension in space.named if not dimension.per_layer and dimension is not LAYERS]
    for *whole, number in itertools.product(*map(space.sizes, shared), space.num_hidden_layers):
        subsets = [range(number)] if space.granularity == "coarse" else itertools.combinations(range(3), number)
        for layers in subsets:
            pairs = list(itertools.product(*map(space.sizes, per_layer)))
            chosen = (
                itertools.product(pairs, repeat=number) if space.layer_wise else ([pair] * number for pair in pairs)
            )
            for sizes in chosen:
                kept = zip((*shared, *per_layer), (*whole, *zip(*sizes, strict=True)), strict=True)
                subnet = SubnetConfig(
                    num_hidden_layers=tuple(layers), **{dimension.name: entries for dimension, entries in kept}
                )
                if space.contains(subnet):
                    yield subnet


def check_optimum(config, kind, seed):
    space = SearchSpace.from_config(config, **{"hidden_size": range(8, 17, 4), **kind})
    subnets = list(all_subnets(space))
    costs = sorted(num_parameters(config, subnet) for subnet in subnets)
    bin = ParameterBin(costs[len(costs) * 2 // 5], costs[len(costs) * 3 // 5])
    fitness = AdditiveToy(seed, config)
    result = search("additive", fitness, bin, space, generations=0, head_options=4, neuron_options=4,
                    channel_options=8, levels=16, answers=8)  # fmt: skip
    optimum = min(fitness(subnet) for subnet in subnets if bin.contains(config, subnet))
    assert result.best_evaluation.fitness == pytest.approx(optimum)


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", TINY_SIZES.values(), ids=TINY_SIZES)
def test_best_answer_of_an_additive_fitness_is_the_optimum(kind, seed):
    check_optimum(TINY, kind, seed)


@pytest.mark.parametrize("kind", LLAMA_SIZES.values(), ids=LLAMA_SIZES)
def test_best_answer_is_the_optimum_over_every_dimension(kind):
    check_optimum(TINY_LLAMA, kind, 0)


def test_replacements_are_not_answers():
    result = search("additive")
    replaced = [e for e in result.evaluations if e.origin == "replacement"]
    assert len(replaced) > 10
    assert not set(replaced) & set(result.answers)


def test_replacements_change_one_thing_of_the_super_network():
    full = Shape.from_config(CONFIG)
    first, *others = [e.subnet for e in search("additive").evaluations if e.origin == "replacement"]
    assert first == SubnetConfig.full(full)
    for subnet in others:
        shape = subnet.shape
        if shape.num_hidden_layers == 4:
            assert subnet == first.with_layers(subnet.layers)
            continue
        changed = [shape.hidden_size != full.hidden_size]
        for name in ("num_attention_heads", "intermediate_size"):
            changed += [a != b for a, b in zip(getattr(shape, name), getattr(full, name), strict=True)]
        assert sum(changed) == 1


def test_replacements_are_scored_on_their_share():
    result = search("additive", score_share=0.25)
    assert {e.share for e in result.evaluations if e.origin == "replacement"} == {0.25}
    assert {e.share for e in result.evaluations if e.origin == "answer"} == {1}


def test_evolution_goes_on_from_the_answers():
    result = search("additive", num_elites=2)
    answers = sorted((e for e in result.evaluations if e.origin == "answer"), key=lambda e: e.fitness)
    parents = {parent for e in result.evaluations for parent in e.parents}
    assert parents and parents <= {e.subnet.digest for e in result.answers if e.generation == answers[0].generation}


# Errors

AT_LEAST_1 = {
    "additive": ["initial", "num_elites", "head_options", "neuron_options", "channel_options", "answers"],
    "evolution": ["population_size", "num_offspring", "num_elites"],
    "local": ["evaluations", "population_size", "num_neighbors", "patience"],
    "multi-fidelity": ["initial", "num_elites"],
    "nsga2": ["evaluations"],
    "random": ["evaluations", "num_draws"],
    "regularized-evolution": ["evaluations", "population_size", "tournament_size", "num_offspring"],
}


@pytest.mark.parametrize(("name", "setting"), [(name, s) for name, known in AT_LEAST_1.items() for s in known])
def test_number_below_1_is_an_error(name, setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        ALGORITHMS[name](**{setting: 0})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("additive", {"levels": 1}, "levels must be at least 2, got 1"),
        ("additive", {"score_share": 0.0}, "score_share must be above 0 and at most 1, got 0.0"),
        ("additive", {"score_share": 1.5}, "score_share must be above 0 and at most 1, got 1.5"),
        ("additive", {"score_share": math.nan}, "score_share must be above 0 and at most 1, got nan"),
        ("nsga2", {"population_size": 1}, "population_size must be at least 2, got 1"),
        ("nsga2", {"mutation_rate": -0.5}, "mutation_rate must lie between 0 and 1, got -0.5"),
        ("multi-fidelity", {"generations": -1}, "generations must be at least 0, got -1"),
        ("multi-fidelity", {"mutation_rate": 2.0}, "mutation_rate must lie between 0 and 1, got 2.0"),
        ("multi-fidelity", {"shares": []}, "shares must ascend from above 0 to 1, got []"),
        ("multi-fidelity", {"shares": [0.5, 0.25, 1]}, "shares must ascend from above 0 to 1, got [0.5, 0.25, 1]"),
        ("multi-fidelity", {"shares": [0.0, 0.5, 1]}, "shares must ascend from above 0 to 1, got [0.0, 0.5, 1]"),
        ("multi-fidelity", {"shares": [0.1, 0.2, 0.5]}, "shares must ascend from above 0 to 1, got [0.1, 0.2, 0.5]"),
        ("multi-fidelity", {"sizes": [4, 2]}, "sizes must have 3 descending numbers from 1, got [4, 2]"),
        ("multi-fidelity", {"sizes": [2, 4, 1]}, "sizes must have 3 descending numbers from 1, got [2, 4, 1]"),
        ("multi-fidelity", {"sizes": [2, 1, 0]}, "sizes must have 3 descending numbers from 1, got [2, 1, 0]"),
    ],
)
def test_setting_out_of_range_is_an_error(name, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ALGORITHMS[name](**settings)


def test_additive_scores_are_the_default():
    result = search_subnets(None, FEW, bin=ParameterBin(0, 1e9), fitness=Toy(), progress=False)
    assert result.settings["algorithm"] == {"name": "additive", **vars(AdditiveSearchConfig())}


@each_algorithm
def test_function_of_a_subnet_alone_is_evaluated_whole(name):
    asked = []

    def fitness(subnet):
        asked.append(subnet)
        return Toy()(subnet)

    result = search_subnets(None, SPACE, bin=BIN, config=small_config(name), fitness=fitness, progress=False)
    assert result.answers and {evaluation.share for evaluation in result.evaluations} == {1}
    assert len(set(asked)) == len(asked) == len(result.evaluations)


@each_algorithm
def test_bin_without_an_end(name):
    result = search(name, bin=ParameterBin(25_000, math.inf))
    assert result.answers and all(answer.cost >= 25_000 for answer in result.answers)


@each_algorithm
def test_negative_seed_is_an_error(name):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        small_config(name, seed=-1)


def test_fitness_may_have_an_attribute_supernet_that_is_no_model():
    class Own(Toy):
        supernet = "EleutherAI/pythia-14m"

    assert search("random", Own()).evaluations == search("random").evaluations


@pytest.mark.parametrize(
    "bins",
    [[], [BIN, FlopsBin(40e3, 45e3, sequence_length=32)], [BIN, ParameterBin(12_000, 14_000, embeddings=False)]],
)
def test_bins_of_different_costs_are_an_error(bins):
    with pytest.raises(BinError, match="give one bin, or several of the same cost"):
        search("random", bin=bins)


def test_program_prices_in_seconds_as_exactly_as_in_parameters():
    polynomial = parameter_polynomial(CONFIG) * 1e-9

    class Seconds(ParameterBin):
        def cost(self, config):
            return polynomial

    parameters = search("additive", bin=BIN, generations=0)
    seconds = search("additive", bin=Seconds(BIN.low * 1e-9, BIN.high * 1e-9), generations=0)
    answers = [[e.subnet for e in result.evaluations if e.origin == "answer"] for result in (parameters, seconds)]
    assert answers[0] and answers[0] == answers[1]


def test_scores_are_differences_of_logarithms_for_perplexities_and_of_values_below_one():
    assert additive_scores(2.0, [4.0, 1.5]) == pytest.approx([math.log(2), 0.0])
    assert additive_scores(0.0, [0.25, 0.5]) == [0.25, 0.5]
    assert additive_scores(-9e6, [-8.9e6, -1e6]) == pytest.approx([1e5, 8e6])
    assert additive_scores(math.inf, [1.0]) == [0.0]
    assert additive_scores(2.0, [4.0, math.inf]) == pytest.approx([math.log(2), 10 * math.log(2) + 1])
