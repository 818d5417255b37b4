"""Spaces of every architecture: their subnets lie in the space and in the bin, and stock ones fit a stock class."""

import copy
import json
import pickle
import re
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import settings_of
from transformers import AutoConfig

from hf_whittle import FlopsBin, KVCacheBin, ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.architectures.dimensions import HEAD_CHANNELS, LAYERS, QUERIES
from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture
from hf_whittle.cost import num_parameters
from hf_whittle.errors import BinError, SubnetError
from hf_whittle.models.student import fits_stock
from hf_whittle.space.entries import AnyEntries, Units
from hf_whittle.subnet import Shape, count, indices

KINDS = {
    "coarse uniform": {"granularity": "coarse"},
    "coarse layer-wise": {"granularity": "coarse", "layer_wise": True},
    "fine uniform": {"granularity": "fine"},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
}
STOCK_KINDS = {"coarse": {"stock_only": True}, "fine": {"granularity": "fine", "stock_only": True}}
EXTRAS = {
    "whole heads": {},
    "queries": {"num_key_value_groups": range(1, 5)},
    "head sizes": {"head_dim": range(2, 9, 2)},
    "queries and head sizes": {"num_key_value_groups": range(1, 5), "head_dim": range(4, 9, 4)},
    "one size of each": {"num_key_value_groups": range(3, 4), "head_dim": range(6, 7)},
}
ANY_SIZE = ParameterBin(0, 1e18)
SEEDS = st.integers(0, 2**32)
BY_DIMENSIONS = {tuple(each.name for each in get_architecture(name).dimensions): name for name in ARCHITECTURES[::-1]}
"""An architecture of each set of dimensions: spaces read nothing else of it but its parameters, tested in `cost`."""
each_architecture = pytest.mark.parametrize("model_type", ARCHITECTURES)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_extra = pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)


def make_config(model_type, **changes):
    """Four queries for each of two key-value heads, where queries are grouped."""
    is_grouped = QUERIES in get_architecture(model_type).dimensions
    heads = {"num_attention_heads": 8, "head_dim": 8} if is_grouped else {}
    return AutoConfig.for_model(model_type, **{**settings_of(model_type), **heads, **changes})


def make_space(model_type, **choices):
    """A space with those of these ranges whose dimensions the architecture has."""
    lacking = {"num_key_value_groups", "head_dim"} - {d.name for d in get_architecture(model_type).dimensions}
    chosen = {name: value for name, value in choices.items() if name not in lacking}
    return SearchSpace.from_config(make_config(model_type), **chosen)


def assert_walks_within(space, bin, seed):
    rng = Random(seed)
    outside = space.sample(rng, ANY_SIZE)
    first, second = space.sample(rng, bin), space.mutate(outside, rng, bin)
    for _ in range(3):
        for subnet in (first, second):
            assert space.contains(subnet)
            assert bin.contains(space.config, subnet)
        first, second = space.mutate(first, rng, bin), space.crossover(first, second, rng, bin)


@pytest.mark.slow_after(7)
@pytest.mark.parametrize("model_type", BY_DIMENSIONS.values())
@each_kind
@each_extra
@settings(max_examples=6)
@given(seed=SEEDS, width=st.sampled_from([0, 3, 500, 5000]))
def test_samples_mutations_and_crossovers_lie_in_the_space_and_in_the_bin(model_type, kind, extra, seed, width):
    space = make_space(model_type, **kind, **extra)
    target = num_parameters(space.config, space.sample(Random(seed), ANY_SIZE))
    assert_walks_within(space, ParameterBin(max(0, target - width // 2), target + width), seed)


@each_architecture
@pytest.mark.parametrize(
    "bin", [FlopsBin(9_000, 30_000, sequence_length=16), KVCacheBin(100, 400)], ids=["FLOPs", "cache"]
)
def test_bins_of_other_costs_hold_what_is_drawn_for_them(model_type, bin):
    for seed, extra in enumerate(EXTRAS.values()):
        assert_walks_within(make_space(model_type, granularity="fine", layer_wise=True, **extra), bin, seed)


@pytest.mark.slow_after(8)
@each_architecture
@pytest.mark.parametrize("kind", STOCK_KINDS.values(), ids=STOCK_KINDS)
@pytest.mark.parametrize("queries", [None, range(1, 5)], ids=["whole", "queries"])
@given(seed=SEEDS)
def test_subnets_of_stock_spaces_fit_a_stock_class(model_type, kind, queries, seed):
    space, rng = make_space(model_type, num_key_value_groups=queries, **kind), Random(seed)
    subnet = space.sample(rng, ANY_SIZE)
    target = num_parameters(space.config, subnet)
    bin = ParameterBin(target, target + 500)
    for each in (subnet, space.mutate(subnet, rng, bin), space.crossover(space.sample(rng, bin), subnet, rng, bin)):
        assert fits_stock(space.config, each)
        assert space.contains(each)


@each_architecture
def test_stock_spaces_hold_exactly_the_coarse_subnets_that_a_stock_class_does(model_type):
    architecture, config = get_architecture(model_type), make_config(model_type)
    ranges = {"hidden_size": range(4, 33, 4), "num_hidden_layers": range(2, 3), "intermediate_size": range(8, 9)}
    space = SearchSpace.from_config(config, stock_only=True, **ranges)
    heads, rng = architecture.per_layer[0], Random(0)
    fitting = {
        subnet
        for channels in ranges["hidden_size"]
        for number in space.sizes(heads)
        if fits_stock(config, subnet := SubnetConfig(channels, 2, intermediate_size=8, **{heads.name: number}))
    }
    drawn = {space.sample(rng, ANY_SIZE) for _ in range(40 * len(fitting))}
    assert drawn == fitting
    costs = [num_parameters(config, subnet) for subnet in fitting]
    assert space.reachable_costs(ANY_SIZE.cost(config)) == (min(costs), max(costs))


@each_architecture
def test_every_channel_size_of_a_default_stock_space_is_reached(model_type):
    space = make_space(model_type, stock_only=True)
    reached = {frame[0] for frame, _ in space.reachable_pairs(ANY_SIZE)}
    assert reached == set(space.hidden_size) and 32 in reached


def test_stock_steps_of_channels_are_those_that_a_stock_class_allows():
    steps = {
        name: make_space(name, stock_only=True).hidden_size
        for name in ("gpt_neox", "llama", "qwen3", "cohere", "gemma3_text")
    }
    assert steps == {
        "gpt_neox": range(8, 33, 8),  # heads of 8 channels fill them
        "llama": range(4, 33, 4),  # a multiple of the 4 queries of a key-value head
        "qwen3": range(1, 33),
        "cohere": range(1, 33),
        "gemma3_text": range(32, 33, 32),  # the scale of embeddings is their root
    }


@each_architecture
@each_kind
def test_optional_dimensions_are_named_only_where_they_are_not_always_whole(model_type, kind):
    for extra in EXTRAS.values():
        space, rng = make_space(model_type, **kind, **extra), Random(0)
        subnet = space.sample(rng, ANY_SIZE)
        for each in (subnet, space.mutate(subnet, rng, ANY_SIZE), space.crossover(subnet, subnet, rng, ANY_SIZE)):
            optional = {d.name for d in each.dimensions if d.is_optional}
            assert optional == {d.name for d in space.architecture.dimensions} & extra.keys()


@each_architecture
def test_mutation_and_crossover_reach_every_size_of_every_dimension(model_type):
    sizes = {"hidden_size": range(16, 33, 8), "num_hidden_layers": range(2, 5), "intermediate_size": range(16, 65, 16)}
    space, rng = make_space(model_type, **sizes, **EXTRAS["queries and head sizes"]), Random(0)
    subnet = space.sample(rng, ANY_SIZE)
    seen = {dimension: set() for dimension in space.architecture.dimensions}
    for _ in range(600):
        subnet = space.mutate(subnet, rng, ANY_SIZE)
        shape = subnet.shape.filled(space.full)
        for dimension in seen:
            seen[dimension].add(shape.size(dimension))
    assert seen == {dimension: set(space.sizes(dimension)) for dimension in seen}


@pytest.mark.slow
@each_architecture
@given(seed=SEEDS)
def test_fine_head_channels_are_whole_pairs_and_may_be_any(model_type, seed):
    space, rng = make_space(model_type, granularity="fine", head_dim=range(4, 5)), Random(seed)
    kept = {indices(space.sample(rng, ANY_SIZE).head_dim) for _ in range(60)}
    assert kept <= {(a, a + 1, b, b + 1) for a in (0, 2, 4) for b in range(a + 2, 8, 2)}
    assert len(kept) > 2


@each_architecture
def test_fine_exchanges_reach_every_dimension_that_has_other_entries(model_type):
    space, rng = make_space(model_type, granularity="fine", layer_wise=True, **EXTRAS["one size of each"]), Random(0)
    before, exchanged = space.sample(rng, ANY_SIZE), set()
    for _ in range(400):
        after = space.mutate(before, rng, ANY_SIZE)
        for dimension in space.named:
            one, other = before.kept(dimension), after.kept(dimension)
            sizes = [tuple(map(count, kept)) if dimension.per_layer else count(kept) for kept in (one, other)]
            if sizes[0] == sizes[1] and one != other:
                exchanged.add(dimension)
        before = after
    assert exchanged == set(space.named)


@each_architecture
def test_scored_entries_of_every_dimension_are_kept_first(model_type):
    config, rng = make_config(model_type), Random(0)
    full = Shape.from_config(config)

    def scored(size):
        return rng.sample(range(size), size)

    scores = {
        d: [scored(full.size(d)) for _ in range(5)] if d.per_layer else scored(full.size(d)) for d in full.dimensions
    }
    importance = SimpleNamespace(layers=scored(5), of=scores.get, check=lambda shape: None, settings={})
    choices = {"granularity": "fine", "layer_wise": True, "importance": importance, "temperature": 0}
    space = make_space(model_type, **choices, **EXTRAS["queries and head sizes"])
    for _ in range(10):
        subnet = space.sample(rng, ANY_SIZE)
        assert subnet.layers == best(importance.layers, len(subnet.layers))
        for dimension in space.named:
            kept = subnet.kept(dimension)
            if dimension.per_layer:
                for layer, entries in zip(subnet.layers, kept, strict=True):
                    assert indices(entries) == best(scores[dimension][layer], count(entries))
            elif dimension is HEAD_CHANNELS:
                pairs = [sum(scores[dimension][i : i + 2]) for i in range(0, full.head_dim, 2)]
                assert indices(kept)[::2] == tuple(2 * pair for pair in best(pairs, count(kept) // 2))
            elif dimension is not LAYERS:
                assert indices(kept) == best(scores[dimension], count(kept))


def best(scores, number):
    """The entries with the `number` highest scores, the first ones among equals."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda entry: -scores[entry])[:number]))


@given(seed=SEEDS, size=st.integers(1, 6), other=st.integers(1, 6))
def test_units_are_resized_and_exchanged_whole(seed, size, other):
    entries, rng = Units(AnyEntries(6), 2), Random(seed)
    kept = entries.choose(rng, 2 * size)
    resized, exchanged = entries.resize(rng, kept, 2 * other), entries.exchange(rng, kept)
    for chosen, number in ((kept, size), (resized, other), (exchanged, size)):
        assert len(chosen) == 2 * number
        assert all(even % 2 == 0 and odd == even + 1 for even, odd in zip(chosen[::2], chosen[1::2], strict=True))
    assert set(resized) <= set(kept) if other < size else set(resized) >= set(kept)
    assert exchanged != kept or size == 6


@each_architecture
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_copies_of_a_space_draw_the_same_subnets(model_type, copied):
    space = make_space(model_type, granularity="fine", **EXTRAS["queries and head sizes"])
    walks = []
    for each in (space, copied(space)):
        rng = Random(3)
        subnets = [each.sample(rng, ANY_SIZE)]
        for _ in range(20):
            subnets.append(each.mutate(subnets[-1], rng, ANY_SIZE))
        walks.append(subnets)
    assert walks[0] == walks[1]


# The record


@each_architecture
def test_record_names_the_dimensions_that_subnets_do(model_type):
    for extra in EXTRAS.values():
        space = make_space(model_type, **extra)
        record = space.to_dict()
        assert record == json.loads(json.dumps(record))
        names = [dimension.name for dimension in space.named]
        assert [*record] == ["granularity", "layer_wise", "stock_only", *names, "supernet"]
        assert record["supernet"] == {name: space.full.size(d) for d, name in zip(space.named, names, strict=True)}


# Errors


@pytest.mark.parametrize(
    ("model_type", "choices", "message"),
    [
        (
            "gpt_neox",
            {"num_key_value_heads": range(1, 3)},
            "num_key_value_heads: a gpt_neox has no such dimension, only",
        ),
        ("gpt_neox", {"num_key_value_groups": range(1, 2)}, "num_key_value_groups: a gpt_neox has no such dimension"),
        ("llama", {"num_attention_heads": range(1, 3)}, "num_attention_heads: a llama has no such dimension, only"),
        ("llama", {"num_key_value_heads": range(1, 4)}, "must be an ascending range within 1 to 2, got range(1, 4)"),
        (
            "llama",
            {"num_key_value_groups": range(1, 6)},
            "num_key_value_groups: sizes must be an ascending range within",
        ),
        ("llama", {"head_dim": range(2, 9)}, "head channels are kept in groups of 2, so sizes must be multiples of 2"),
        ("gpt_neox", {"head_dim": range(1, 8, 2)}, "head_dim: head channels are kept in groups of 2"),
        ("qwen3", {"head_dim": range(4, 9, 2), "stock_only": True}, "a stock model has heads of all channels"),
        ("gemma3_text", {"head_dim": range(4, 5), "stock_only": True}, "no range of head_dim, got range(4, 5)"),
    ],
)
def test_range_that_does_not_fit_is_an_error(model_type, choices, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        SearchSpace.from_config(make_config(model_type), **choices)


@pytest.mark.parametrize(
    ("model_type", "ranges", "problem"),
    [
        ("gpt_neox", {"hidden_size": range(9, 10)}, "its num_attention_heads * 8 must be its hidden_size, got 4 and 9"),
        ("llama", {"hidden_size": range(7, 8)}, "must be a multiple of the number of attention heads, got 7 and 8"),
        ("gemma3_text", {"hidden_size": range(16, 17)}, "it scales embeddings by the root of its hidden_size"),
    ],
)
def test_stock_space_without_any_subnet_says_why(model_type, ranges, problem):
    space = SearchSpace.from_config(make_config(model_type), stock_only=True, **ranges)
    expected = (
        rf"no subnet of this space fits a stock model; .*{re.escape(problem)}.* change one of the ranges hidden_size="
    )
    with pytest.raises(BinError, match=expected):
        space.sample(Random(0), ANY_SIZE)


def test_subnet_of_a_space_of_whole_heads_is_the_same_one_in_a_space_of_several_sizes():
    whole, several = make_space("llama"), make_space("llama", **EXTRAS["queries and head sizes"])
    subnet = whole.sample(Random(0), ANY_SIZE)
    assert several.contains(subnet)
    child = several.mutate(subnet, Random(1), ANY_SIZE)
    assert several.contains(child) and child.head_dim is not None
    assert whole.contains(whole.mutate(child, Random(2), ANY_SIZE))
