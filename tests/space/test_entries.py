"""Kept entries: uniform draws without scores, the best ones with them, and all between by temperature."""

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures_search import BIN, CONFIG
from hypothesis import given
from hypothesis import strategies as st

from hf_whittle import (
    EvolutionConfig,
    ImportanceScores,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    score_importance,
    search_subnets,
)
from hf_whittle.errors import OutputError, SubnetError
from hf_whittle.search.result import SEARCH_FILE
from hf_whittle.space.entries import AnyEntries, FirstEntries
from hf_whittle.subnet import count, indices

ANY_SIZE = ParameterBin(0, 1e18)
SCORES = [0.3, 2.0, -1.0, 5.0, 0.1, 0.2]  # from best to worst: 3, 1, 0, 5, 4, 2
SUBSETS = list(itertools.combinations(range(5), 2))
SEEDS = st.integers(0, 2**32)


def scores_of(config, seed=0, **settings):
    """Scores drawn at random, none of them equal, for a model without weights."""
    rng = np.random.default_rng(seed)

    def shuffled(size):
        return rng.permutation(size).astype(np.float32) - size / 2

    layers = range(config.num_hidden_layers)
    return ImportanceScores(
        layers=shuffled(config.num_hidden_layers),
        entries={
            "num_attention_heads": tuple(shuffled(config.num_attention_heads) for _ in layers),
            "intermediate_size": tuple(shuffled(config.intermediate_size) for _ in layers),
            "hidden_size": shuffled(config.hidden_size),
        },
        settings={"criterion": "made up", **settings},
    )


IMPORTANCE = scores_of(CONFIG)
CHANNELS, HEADS, NEURONS = (
    IMPORTANCE.entries[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")
)
each_wise = pytest.mark.parametrize("layer_wise", [False, True], ids=["uniform", "layer-wise"])


def scored_space(layer_wise=True, temperature=0.1, importance=IMPORTANCE):
    return SearchSpace.from_config(CONFIG, "fine", layer_wise, importance=importance, temperature=temperature)


def with_scores(**entries):
    """The scores with others of some dimensions."""
    return replace(IMPORTANCE, entries={**IMPORTANCE.entries, **entries})


def best(scores, number):
    """The entries with the `number` highest scores."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda entry: -scores[entry])[:number]))


def chi_square(counts, categories):
    """Pearson's statistic against the uniform law, and the bound that it hardly ever exceeds under this law."""
    assert set(counts) <= set(categories)
    expected, freedom = counts.total() / len(categories), len(categories) - 1
    statistic = sum((counts[category] - expected) ** 2 / expected for category in categories)
    return statistic, freedom + 4 * math.sqrt(2 * freedom)


# Entries without scores


def test_draws_without_scores_are_uniform_over_all_subsets():
    entries, rng = AnyEntries(5), Random(0)
    statistic, bound = chi_square(Counter(entries.choose(rng, 2) for _ in range(3000)), SUBSETS)
    assert statistic < bound


def test_resizing_without_scores_is_uniform_over_what_may_stay_or_come():
    entries, rng = AnyEntries(5), Random(0)
    down = Counter(entries.resize(rng, (0, 1, 3, 4), 2) for _ in range(2000))
    statistic, bound = chi_square(down, list(itertools.combinations((0, 1, 3, 4), 2)))
    assert statistic < bound
    up = Counter(entries.resize(rng, (1, 3), 3) for _ in range(2000))
    statistic, bound = chi_square(up, [(0, 1, 3), (1, 2, 3), (1, 3, 4)])
    assert statistic < bound


@pytest.mark.parametrize("scores", [None, SCORES * 2], ids=["without scores", "with scores"])
@given(seed=SEEDS, size=st.integers(1, 12), other=st.integers(1, 12))
def test_resizing_leaves_out_or_adds_and_nothing_else(scores, seed, size, other):
    entries, rng = AnyEntries(12, scores), Random(seed)
    kept = entries.choose(rng, size)
    resized = entries.resize(rng, kept, other)
    assert len(resized) == other
    assert set(resized) <= set(kept) if other < size else set(resized) >= set(kept)


@pytest.mark.parametrize("scores", [None, SCORES * 2], ids=["without scores", "with scores"])
@given(seed=SEEDS, size=st.integers(1, 12))
def test_exchange_replaces_one_to_a_quarter(scores, seed, size):
    entries, rng = AnyEntries(12, scores), Random(seed)
    kept = entries.choose(rng, size)
    exchanged = entries.exchange(rng, kept)
    replaced = len(set(exchanged) - set(kept))
    assert len(exchanged) == size and list(exchanged) == sorted(exchanged)
    assert replaced <= max(1, size // 4) and (replaced >= 1 or size == 12)


# Entries with scores


@pytest.mark.parametrize("size", range(1, 7))
def test_zero_temperature_keeps_the_best(size):
    entries = AnyEntries(6, SCORES, temperature=0)
    assert {entries.choose(Random(seed), size) for seed in range(5)} == {tuple(sorted((3, 1, 0, 5, 4, 2)[:size]))}


def test_zero_temperature_drops_the_least_and_adds_the_best():
    entries, rng = AnyEntries(6, SCORES, temperature=0), Random(0)
    assert entries.resize(rng, (0, 2, 3, 4), 3) == (0, 3, 4)
    assert entries.resize(rng, (0, 2, 3, 4), 1) == (3,)
    assert entries.resize(rng, 3, 2) == (0, 1)
    assert entries.resize(rng, (2, 4), 3) == (2, 3, 4)
    assert entries.resize(rng, (2, 4), 5) == (0, 1, 2, 3, 4)
    assert indices(entries.resize(rng, 6, 6)) == (0, 1, 2, 3, 4, 5)


def test_zero_temperature_exchanges_the_least_for_the_best():
    entries = AnyEntries(6, SCORES, temperature=0)
    assert entries.exchange(Random(0), (0, 2, 4)) == (0, 3, 4)
    assert entries.exchange(Random(0), (5,)) == (3,)


def test_only_the_order_of_scores_counts():
    of_scores, of_ranks = AnyEntries(6, SCORES), AnyEntries(6, [math.exp(score) for score in SCORES])
    for seed in range(50):
        assert of_scores.choose(Random(seed), 3) == of_ranks.choose(Random(seed), 3)


def test_among_equal_scores_the_first_entries_are_kept():
    entries, rng = AnyEntries(5, [1.0, 2.0, 1.0, 2.0, 1.0], temperature=0), Random(0)
    assert [entries.choose(rng, size) for size in range(1, 6)] == [
        (1,),
        (1, 3),
        (0, 1, 3),
        (0, 1, 2, 3),
        (0, 1, 2, 3, 4),
    ]
    assert entries.resize(rng, (2, 4), 1) == (2,)


def test_high_temperature_is_the_uniform_draw():
    entries, rng = AnyEntries(5, SCORES[:5], temperature=1e6), Random(0)
    statistic, bound = chi_square(Counter(entries.choose(rng, 2) for _ in range(3000)), SUBSETS)
    assert statistic < bound


def test_low_temperature_is_far_from_the_uniform_draw():
    entries, rng = AnyEntries(5, SCORES[:5], temperature=0.1), Random(0)
    statistic, bound = chi_square(Counter(entries.choose(rng, 2) for _ in range(3000)), SUBSETS)
    assert statistic > 10 * bound


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_better_entries_are_drawn_more_often(temperature):
    entries, rng = AnyEntries(6, SCORES, temperature), Random(0)
    drawn = Counter(entry for _ in range(4000) for entry in entries.choose(rng, 2))
    by_score = [drawn[entry] for entry in (3, 1, 0, 5, 4, 2)]
    slack = 3 * math.sqrt(2 * 4000 / 6)
    assert all(better > worse - slack for better, worse in itertools.pairwise(by_score))
    assert by_score[0] > by_score[2] + slack > by_score[5] + 2 * slack


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_one_entry_is_drawn_by_the_softmax_of_its_rank(temperature):
    entries, rng = AnyEntries(6, SCORES, temperature), Random(0)
    drawn = Counter(entries.choose(rng, 1)[0] for _ in range(4000))
    weights = {entry: math.exp((6 - place) / 6 / temperature) for place, entry in enumerate((3, 1, 0, 5, 4, 2))}
    for entry, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn[entry] - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share)) + 1


def test_first_entries_are_numbers():
    entries, rng = FirstEntries(6), Random(0)
    assert entries.choose(rng, 4) == entries.resize(rng, 2, 4) == entries.exchange(rng, 4) == 4
    assert rng.getstate() == Random(0).getstate()


# Spaces with scores


@each_wise
@pytest.mark.parametrize("temperature", [0, 0.1, 10])
@given(seed=SEEDS)
def test_samples_mutations_and_crossovers_lie_in_the_space_and_in_the_bin(layer_wise, temperature, seed):
    space, rng = scored_space(layer_wise, temperature), Random(seed)
    first, second = space.sample(rng, BIN), space.sample(rng, BIN)
    for _ in range(4):
        for subnet in (first, second):
            assert space.contains(subnet) and BIN.contains(CONFIG, subnet)
        first, second = space.mutate(first, rng, BIN), space.crossover(first, second, rng, BIN)


@each_wise
def test_same_seed_gives_the_same_subnets(layer_wise):
    def walk(seed):
        space, rng = scored_space(layer_wise), Random(seed)
        first, second = space.sample(rng, BIN), space.sample(rng, BIN)
        return [first, second, space.mutate(first, rng, BIN), space.crossover(first, second, rng, BIN)]

    assert walk(3) == walk(3)
    assert walk(3) != walk(4)


def mean_rank(of_layers):
    """Ascending rank of each entry, averaged over the layers."""
    return sum(np.argsort(np.argsort(scores)) for scores in of_layers) / len(of_layers)


@given(seed=SEEDS)
def test_cold_layer_wise_draws_keep_the_best_of_every_layer(seed):
    subnet = scored_space(temperature=0).sample(Random(seed), BIN)
    assert indices(subnet.hidden_size) == best(CHANNELS, count(subnet.hidden_size))
    assert subnet.layers == best(IMPORTANCE.layers, len(subnet.layers))
    for position, layer in enumerate(subnet.layers):
        heads, neurons = subnet.num_attention_heads[position], subnet.intermediate_size[position]
        assert indices(heads) == best(HEADS[layer], count(heads))
        assert indices(neurons) == best(NEURONS[layer], count(neurons))


@given(seed=SEEDS)
def test_cold_uniform_draws_keep_the_best_by_mean_rank(seed):
    rng = np.random.default_rng(seed)
    neurons = tuple(rng.random(64) * 10.0**layer for layer in range(5))  # of very different sizes: only ranks count
    importance = with_scores(intermediate_size=neurons)
    subnet = scored_space(layer_wise=False, temperature=0, importance=importance).sample(Random(seed), BIN)
    ranks, kept = mean_rank(neurons), indices(subnet.intermediate_size[0])
    left_out = set(range(64)).difference(kept)
    assert not left_out or min(ranks[list(kept)]) >= max(ranks[list(left_out)])
    assert len(set(subnet.intermediate_size)) == len(set(subnet.num_attention_heads)) == 1


@pytest.mark.parametrize("heads", [[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 2.0]])
def test_cold_uniform_and_layer_wise_draws_agree_where_all_layers_have_the_same_scores(heads):
    neurons = np.repeat(np.arange(8.0), 8)
    importance = with_scores(num_attention_heads=(np.array(heads),) * 5, intermediate_size=(neurons,) * 5)
    kept = {}
    for layer_wise in (False, True):
        space = SearchSpace.from_config(
            CONFIG,
            "fine",
            layer_wise,
            num_attention_heads=range(2, 3),
            intermediate_size=range(12, 13),
            importance=importance,
            temperature=0,
        )
        subnet = space.sample(Random(0), ANY_SIZE)
        kept[layer_wise] = {*subnet.num_attention_heads}, {*subnet.intermediate_size}
    assert kept[False] == kept[True]


def test_cold_mutations_drop_the_least_and_add_the_best():
    space, rng = scored_space(temperature=0), Random(0)
    before = space.sample(rng, ANY_SIZE)
    for _ in range(60):
        after = space.mutate(before, rng, ANY_SIZE)
        removed = set(indices(before.hidden_size)) - set(indices(after.hidden_size))
        stayed = set(indices(before.hidden_size)) - removed
        added = set(indices(after.hidden_size)) - stayed
        absent = set(range(32)) - set(indices(before.hidden_size)) - added
        channels = CHANNELS
        assert not removed or not stayed or max(channels[list(removed)]) < min(channels[list(stayed)])
        assert not added or not absent or min(channels[list(added)]) > max(channels[list(absent)])
        before = after


@pytest.mark.slow
def test_hot_space_draws_every_channel_equally_often():
    space = SearchSpace.from_config(CONFIG, "fine", hidden_size=range(8, 9), importance=IMPORTANCE, temperature=1e6)
    rng = Random(0)
    drawn = Counter(index for _ in range(1500) for index in indices(space.sample(rng, ANY_SIZE).hidden_size))
    assert all(abs(drawn[channel] - 375) < 5 * math.sqrt(375 * 0.75) for channel in range(32))


def test_cold_draws_keep_the_best_pairs_of_channels_of_a_head():
    scores = with_scores(head_dim=np.repeat([1.0, 4.0, 2.0, 3.0], 2))
    space = SearchSpace.from_config(CONFIG, "fine", head_dim=range(4, 5), importance=scores, temperature=0)
    assert space.sample(Random(0), ANY_SIZE).head_dim == (2, 3, 6, 7)


def test_heads_of_an_odd_size_are_kept_whole():
    odd = SimpleNamespace(**{**vars(CONFIG), "hidden_size": 20})
    scores = scores_of(odd)
    scores = replace(scores, entries={**scores.entries, "head_dim": np.arange(5.0)})
    space = SearchSpace.from_config(odd, "fine", layer_wise=True, importance=scores)
    assert space.sample(Random(0), ANY_SIZE).head_dim is None


def test_scored_space_contains_what_the_unscored_one_does():
    plain, rng = SearchSpace.from_config(CONFIG, "fine", layer_wise=True), Random(0)
    assert all(scored_space(temperature=0).contains(plain.sample(rng, ANY_SIZE)) for _ in range(50))


# The record


def test_record_names_the_scores_and_the_temperature():
    space, plain = scored_space(temperature=0.25), SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    record = {**plain.to_dict(), "importance": {"criterion": "made up"}, "temperature": 0.25}
    assert space.to_dict() == record == json.loads(json.dumps(space.to_dict()))
    assert not {"importance", "temperature"} & plain.to_dict().keys()


def test_record_of_measured_scores_says_of_what_and_how(supernet, input_ids):
    scores = score_importance(supernet, input_ids, criterion="magnitude", progress=False)
    record = SearchSpace.from_config(supernet.config, "fine", importance=scores).to_dict()
    assert record["importance"] == scores.settings == json.loads(json.dumps(record))["importance"]
    assert record["importance"].keys() >= {"criterion", "layer_criterion", "data", "model"}


def search(folder, space, stop_after=None):
    """A search of a fitness without a model; interrupted before one of its evaluations."""
    asked = []

    def fitness(subnet):
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(subnet)
        return int(subnet.digest, 16) / 7e13

    fitness.settings = {"name": "digest"}

    config = EvolutionConfig(generations=3, population_size=6, num_offspring=5, num_elites=3, seed=4)
    result = search_subnets(None, space, bin=BIN, config=config, fitness=fitness, output_dir=folder, progress=False)
    return result, asked


@each_wise
@pytest.mark.parametrize("stop_after", [3, 13])
def test_interrupted_search_of_a_scored_space_goes_on_to_the_same_result(tmp_path, layer_wise, stop_after):
    expected, all_asked = search(tmp_path / "whole", scored_space(layer_wise))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "broken", scored_space(layer_wise), stop_after)
    result, asked = search(tmp_path / "broken", scored_space(layer_wise))
    assert result == expected and asked == all_asked[stop_after:]
    record = json.loads((tmp_path / "broken" / SEARCH_FILE).read_text())["settings"]["space"]
    assert record == scored_space(layer_wise).to_dict()


@pytest.mark.parametrize(
    "other",
    [scored_space(temperature=0.2), scored_space(importance=scores_of(CONFIG, criterion="other")), scored_space(False)],
)
def test_search_with_other_scores_or_another_temperature_is_another_search(tmp_path, other):
    search(tmp_path, scored_space())
    with pytest.raises(OutputError, match="holds a search with another space; choose another folder"):
        search(tmp_path, other)


# Errors


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"granularity": "coarse"}, "a coarse space keeps first entries and has no use for importance; sort the"),
        ({"temperature": -0.1}, "temperature must be a number from 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must"),
        ({"temperature": math.inf}, "temperature must"),
        ({"importance": replace(IMPORTANCE, layers=np.ones(4))}, "these scores are for a model with"),
        ({"importance": with_scores(hidden_size=np.ones(31))}, "these scores are for a model with Shape("),
        ({"importance": with_scores(num_attention_heads=(np.ones(3),) * 5)}, "got one with Shape("),
    ],
)
def test_choice_that_does_not_fit_is_an_error(choices, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        SearchSpace.from_config(CONFIG, **{"granularity": "fine", "importance": IMPORTANCE, **choices})


def test_negative_temperature_without_scores_is_an_error_too():
    with pytest.raises(SubnetError, match="temperature must be a number from 0, got -1"):
        SearchSpace.from_config(CONFIG, "fine", temperature=-1)


def test_subnet_outside_the_model_is_not_in_a_scored_space():
    with pytest.raises(SubnetError, match="hidden_size: cannot keep 33 channels"):
        scored_space().contains(SubnetConfig(33, 2, 2, 5))
