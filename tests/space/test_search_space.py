"""Search spaces: everything they give lies in the space and in the bin, and nothing in the bin is out of reach."""

import hashlib
import itertools
import math
import re
from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from fixtures_search import CONFIG
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hf_whittle import ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.architectures.dimensions import NEURONS
from hf_whittle.cost import num_parameters
from hf_whittle.errors import BinError, SubnetError
from hf_whittle.subnet import Shape, indices


def make_config(**changes):
    return SimpleNamespace(**{**vars(CONFIG), **changes})


SMALL = make_config(vocab_size=7, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=3)
PYTHIA_6_9B = make_config(
    vocab_size=50432, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=16384
)
KINDS = {
    "coarse uniform": {"granularity": "coarse"},
    "coarse layer-wise": {"granularity": "coarse", "layer_wise": True},
    "fine uniform": {"granularity": "fine"},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "coarse stock": {"granularity": "coarse", "stock_only": True},
    "fine stock": {"granularity": "fine", "stock_only": True},
}
RANGES = {
    "all sizes": {},
    "few sizes": {
        "hidden_size": range(8, 33, 8),
        "num_hidden_layers": range(2, 6),
        "num_attention_heads": range(1, 4, 2),
        "intermediate_size": range(10, 60, 7),
    },
}
ANY_SIZE = ParameterBin(0, 1e18)
EMPTY = ParameterBin(1e9, 2e9)
SEEDS = st.integers(0, 2**32)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_range = pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)


def assert_in(space, bin, subnet):
    assert space.contains(subnet)
    assert bin.contains(space.config, subnet), (num_parameters(space.config, subnet), bin)


def enumerate_sizes(space):
    """Every coarse uniform subnet of a space, by brute force."""
    sizes = (space.hidden_size, space.num_hidden_layers, space.num_attention_heads, space.intermediate_size)
    for channels, layers, heads, neurons in itertools.product(*sizes):
        subnet = SubnetConfig(channels, layers, heads, neurons)
        if space.contains(subnet):
            yield subnet


@st.composite
def bins(draw, space):
    """Bins that hold a subnet of the space: of one point, very narrow, or wide."""
    target = num_parameters(space.config, space.sample(Random(draw(SEEDS)), ANY_SIZE))
    below, above = (draw(st.sampled_from([0, 1, 3, 500, 5000])) for _ in range(2))
    return ParameterBin(max(0, target - below), target + above)


# In the bin


@each_kind
@each_range
@given(data=st.data())
def test_samples_mutations_and_crossovers_lie_in_the_space_and_in_the_bin(kind, ranges, data):
    space = SearchSpace.from_config(CONFIG, **kind, **ranges)
    bin = data.draw(bins(space))
    rng = Random(data.draw(SEEDS))
    first, second = space.sample(rng, bin), space.sample(rng, bin)
    for _ in range(3):
        assert_in(space, bin, first)
        assert_in(space, bin, second)
        first, second = space.mutate(first, rng, bin), space.crossover(first, second, rng, bin)


@each_kind
def test_every_single_count_that_is_reachable_is_a_bin(kind):
    space = SearchSpace.from_config(SMALL, **kind)
    rng = Random(0)
    for subnet in enumerate_sizes(space):
        parameters = num_parameters(SMALL, subnet)
        bin = ParameterBin(parameters, parameters)
        child = space.mutate(space.sample(rng, bin), rng, bin)
        assert_in(space, bin, child)


@each_kind
@pytest.mark.parametrize("operation", ["mutate", "crossover"])
def test_parents_outside_the_bin_have_children_in_it(kind, operation):
    space = SearchSpace.from_config(CONFIG, **kind)
    bin = ParameterBin(20_000, 20_500)
    rng = Random(0)
    for _ in range(20):
        first, second = (space.sample(rng, ANY_SIZE) for _ in range(2))
        parents = [first] if operation == "mutate" else [first, second]
        assert_in(space, bin, getattr(space, operation)(*parents, rng, bin))


@each_kind
def test_bin_of_the_paper_in_the_shape_of_pythia_6_9b(kind):
    space = SearchSpace.from_config(PYTHIA_6_9B, **kind)
    bin = ParameterBin(385e6, 426e6)
    rng = Random(0)
    first, second = space.sample(rng, bin), space.sample(rng, bin)
    for subnet in (first, second, space.mutate(first, rng, bin), space.crossover(first, second, rng, bin)):
        assert_in(space, bin, subnet)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"attention_bias": False}])
def test_bins_count_the_parameters_of_this_kind_of_model(changes):
    config = make_config(**changes)
    space = SearchSpace.from_config(config, "fine", layer_wise=True)
    bin = ParameterBin(20_000, 20_100)
    rng = Random(0)
    for _ in range(50):
        assert_in(space, bin, space.sample(rng, bin))


# Out of the bin


def empty_bin_message(space):
    counts = [num_parameters(space.config, subnet) for subnet in enumerate_sizes(space)]
    return re.escape(
        f"no subnet of this space lies in the bin 1,000,000,000 to 2,000,000,000; its subnets have {min(counts):,} to "
        f"{max(counts):,}: choose a bin within that range, or a wider one"
    )


@each_kind
def test_empty_bin_is_an_error_that_names_the_reachable_range(kind):
    space = SearchSpace.from_config(SMALL, **kind)
    with pytest.raises(BinError, match=empty_bin_message(space)):
        space.sample(Random(0), EMPTY)


@each_kind
@pytest.mark.parametrize("operation", ["mutate", "crossover"])
def test_empty_bin_is_the_same_error_for_children(kind, operation):
    space = SearchSpace.from_config(SMALL, **kind)
    parents = [space.sample(Random(0), ANY_SIZE)] * (1 if operation == "mutate" else 2)
    with pytest.raises(BinError, match=empty_bin_message(space)):
        getattr(space, operation)(*parents, Random(0), EMPTY)


@each_kind
def test_reachable_range_is_that_of_the_ranges_given(kind):
    space = SearchSpace.from_config(CONFIG, **kind, **RANGES["few sizes"])
    with pytest.raises(BinError, match=empty_bin_message(space)):
        space.sample(Random(0), EMPTY)


def test_space_without_any_subnet_is_a_bin_error():
    space = SearchSpace.from_config(CONFIG, stock_only=True, hidden_size=range(8, 9), num_attention_heads=range(2, 5))
    with pytest.raises(BinError, match="no subnet"):
        space.sample(Random(0), ANY_SIZE)


@pytest.mark.parametrize("kind", [KINDS["coarse uniform"], KINDS["coarse stock"]], ids=["uniform", "stock"])
def test_count_is_reachable_exactly_if_a_subnet_has_it(kind):
    space = SearchSpace.from_config(SMALL, **kind)
    counts = {num_parameters(SMALL, subnet) for subnet in enumerate_sizes(space)}
    for parameters in range(max(counts) + 10):
        bin = ParameterBin(parameters, parameters)
        if parameters in counts:
            assert_in(space, bin, space.sample(Random(0), bin))
        else:
            with pytest.raises(BinError, match="no subnet of this space lies in the bin"):
                space.sample(Random(0), bin)


# The law of the draw


@pytest.mark.parametrize("kind", [KINDS["coarse uniform"], KINDS["coarse stock"]], ids=["uniform", "stock"])
def test_samples_are_all_the_subnets_of_the_bin(kind):
    space = SearchSpace.from_config(SMALL, **kind)
    bin = ParameterBin(150, 260)
    rng = Random(0)
    drawn = {space.sample(rng, bin) for _ in range(1500)}
    assert drawn == {subnet for subnet in enumerate_sizes(space) if bin.contains(SMALL, subnet)}
    assert drawn


def test_mutation_and_crossover_reach_every_subnet_of_the_bin():
    space = SearchSpace.from_config(SMALL)
    bin = ParameterBin(150, 260)
    rng = Random(0)
    subnet = space.sample(rng, bin)
    seen = {subnet}
    for _ in range(2500):
        subnet = space.mutate(subnet, rng, bin)
        seen.add(subnet)
    assert seen == {subnet for subnet in enumerate_sizes(space) if bin.contains(SMALL, subnet)}


@pytest.mark.parametrize("layer_wise", [False, True])
def test_channels_and_layers_are_drawn_uniformly_from_the_reachable_pairs(layer_wise):
    config = make_config(hidden_size=4, num_hidden_layers=3, num_attention_heads=2, intermediate_size=4)
    space = SearchSpace.from_config(config, layer_wise=layer_wise)
    bin = ParameterBin(500, 700)
    rng = Random(0)
    shapes = [space.sample(rng, bin).shape for _ in range(4000)]
    counts = Counter((shape.hidden_size, shape.num_hidden_layers) for shape in shapes)
    reachable = {
        (s.shape.hidden_size, s.shape.num_hidden_layers) for s in enumerate_sizes(space) if bin.contains(config, s)
    }
    assert reachable <= counts.keys()
    expected = 4000 / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(counts) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.slow
def test_fine_entries_are_drawn_uniformly():
    space = SearchSpace.from_config(CONFIG, "fine", hidden_size=range(8, 9))
    rng = Random(0)
    counts = Counter(index for _ in range(2000) for index in indices(space.sample(rng, ANY_SIZE).hidden_size))
    assert set(counts) == set(range(32))
    assert all(abs(count - 500) < 5 * math.sqrt(500 * 0.75) for count in counts.values())


@each_kind
def test_same_seed_gives_the_same_subnets(kind):
    space = SearchSpace.from_config(CONFIG, **kind)
    bin = ParameterBin(20_000, 21_000)

    def walk(seed):
        rng = Random(seed)
        first, second = space.sample(rng, bin), space.sample(rng, bin)
        return [first, second, space.mutate(first, rng, bin), space.crossover(first, second, rng, bin)]

    assert walk(3) == walk(3)
    assert walk(3) != walk(4)


RECORDED = {
    "coarse uniform": "5b43020bf35ed24f",
    "coarse layer-wise": "643fadf5d0f05f33",
    "fine uniform": "8327676913faa708",
    "fine layer-wise": "04e2cd503f2f5742",
    "coarse stock": "651f24880265bba6",
    "fine stock": "524b89b97a645d35",
}
"""Digests of walks by the version that knew one architecture."""


@pytest.mark.parametrize("name", KINDS)
def test_same_seed_gives_the_subnets_of_earlier_versions(name):
    space, bin, rng = SearchSpace.from_config(CONFIG, **KINDS[name]), ParameterBin(20_000, 22_000), Random(7)
    subnets = [space.sample(rng, bin) for _ in range(10)]
    for _ in range(40):
        subnets.append(space.mutate(rng.choice(subnets), rng, bin))
        subnets.append(space.crossover(*rng.sample(subnets, 2), rng, bin))
    walk = "\n".join(subnet.to_json() for subnet in subnets)
    assert hashlib.sha256(walk.encode()).hexdigest()[:16] == RECORDED[name]


# Effects of the moves


@given(SEEDS)
def test_coarse_subnets_keep_first_entries_and_uniform_ones_the_same_in_every_layer(seed):
    rng = Random(seed)
    coarse = SearchSpace.from_config(CONFIG, "coarse", layer_wise=True).sample(rng, ANY_SIZE)
    kept = (coarse.hidden_size, coarse.num_hidden_layers, *coarse.num_attention_heads, *coarse.intermediate_size)
    assert all(isinstance(entry, int) for entry in kept)
    uniform = SearchSpace.from_config(CONFIG, "fine").sample(rng, ANY_SIZE)
    assert len(set(uniform.num_attention_heads)) == len(set(uniform.intermediate_size)) == 1


@given(SEEDS)
def test_stock_subnets_have_heads_that_fill_the_hidden_size(seed):
    shape = SearchSpace.from_config(CONFIG, "fine", stock_only=True).sample(Random(seed), ANY_SIZE).shape
    assert {heads * 8 for heads in shape.num_attention_heads} == {shape.hidden_size}


@given(SEEDS)
def test_crossover_in_a_wide_bin_takes_each_dimension_from_a_parent(seed):
    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    rng = Random(seed)
    parents = [space.sample(rng, ANY_SIZE) for _ in range(2)]
    child = space.crossover(*parents, rng, ANY_SIZE)
    assert child.hidden_size in [parent.hidden_size for parent in parents]
    assert child.num_hidden_layers in [parent.num_hidden_layers for parent in parents]
    for name in ("num_attention_heads", "intermediate_size"):
        of_parents = [dict(zip(parent.layers, getattr(parent, name), strict=True)) for parent in parents]
        for layer, kept in zip(child.layers, getattr(child, name), strict=True):
            assert kept in [entries[layer] for entries in of_parents if layer in entries]


@given(SEEDS)
def test_mutation_in_a_wide_bin_changes_at_most_one_dimension(seed):
    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    rng = Random(seed)
    before = space.sample(rng, ANY_SIZE)
    after = space.mutate(before, rng, ANY_SIZE)
    if after.num_hidden_layers != before.num_hidden_layers:
        assert after.hidden_size == before.hidden_size
        return
    pairs = [(before.hidden_size, after.hidden_size)]
    for name in ("num_attention_heads", "intermediate_size"):
        pairs += zip(getattr(before, name), getattr(after, name), strict=True)
    assert sum(first != second for first, second in pairs) <= 1


def law_of_sample(space, bin):
    """Probability of each subnet, by following every choice that `sample` makes in a coarse layer-wise space."""
    law = Counter()

    def spread(total, layers, sizes):
        """Probability of each way to spread a total: uniform draws, corrected in every order of the layers."""
        ways, orders = Counter(), list(itertools.permutations(range(layers)))
        for drawn, order in itertools.product(itertools.product(sizes, repeat=layers), orders):
            corrected, rest = list(drawn), total - sum(drawn)
            for position in order:
                size = min(max(corrected[position] + rest, sizes[0]), sizes[-1])
                rest, corrected[position] = rest - size + corrected[position], size
            ways[tuple(corrected)] += 1 / len(sizes) ** layers / len(orders)
        return ways

    pairs = space.reachable_pairs(bin)
    heads_of, neurons_of = space.num_attention_heads, space.intermediate_size
    for frame, layers in pairs:
        channels, per_neuron = frame[0], bin.cost(CONFIG).prices(frame).of(NEURONS)

        def inside(heads, neurons, channels=channels, layers=layers, per_neuron=per_neuron):
            extra = [heads // layers + (i < heads % layers) for i in range(layers)]
            shape = Shape(channels, tuple(extra), (0,) * layers)
            return bin.low <= bin.cost(CONFIG)(shape) + neurons * per_neuron <= bin.high

        totals = {
            heads: [n for n in range(layers * neurons_of[0], layers * neurons_of[-1] + 1, neurons_of.step)
                    if inside(heads, n)]
            for heads in range(layers * heads_of[0], layers * heads_of[-1] + 1)
        }  # fmt: skip
        reachable = {heads: found for heads, found in totals.items() if found}
        for heads, found in reachable.items():
            for neurons in found:
                chance = 1 / len(pairs) / len(reachable) / len(found)
                for a, b in itertools.product(
                    spread(heads, layers, heads_of).items(), spread(neurons, layers, neurons_of).items()
                ):
                    law[SubnetConfig(channels, layers, a[0], b[0])] += chance * a[1] * b[1]
    return law


@pytest.mark.slow
def test_draws_follow_the_documented_law_which_is_not_uniform():
    space = SearchSpace.from_config(
        CONFIG, layer_wise=True, hidden_size=range(16, 33, 8), num_hidden_layers=range(1, 3),
        num_attention_heads=range(1, 4), intermediate_size=range(16, 65, 16),
    )  # fmt: skip
    bin = ParameterBin(8_000, 14_000)
    law = law_of_sample(space, bin)
    assert sum(law.values()) == pytest.approx(1)
    assert all(bin.contains(CONFIG, subnet) for subnet in law)
    rng, number = Random(0), 20_000
    drawn = Counter(space.sample(rng, bin) for _ in range(number))
    assert set(drawn) <= set(law)
    observed = [drawn[subnet] for subnet in law]
    assert chisquare(observed, [number * chance for chance in law.values()]).pvalue > 0.01
    assert chisquare(observed).pvalue < 1e-6
    shapes = itertools.product(space.hidden_size, *[space.num_attention_heads] * 2, *[space.intermediate_size] * 2)
    two_layers = [SubnetConfig(c, 2, (h, i), (m, n)) for c, h, i, m, n in shapes]
    one_layer = [SubnetConfig(c, 1, h, m) for c, h, m in itertools.product(
        space.hidden_size, space.num_attention_heads, space.intermediate_size)]  # fmt: skip
    assert set(law) == {subnet for subnet in two_layers + one_layer if bin.contains(CONFIG, subnet)}


def test_record_of_a_space_names_every_choice():
    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True, hidden_size=range(8, 33, 8))
    assert space.to_dict() == {
        "granularity": "fine",
        "layer_wise": True,
        "stock_only": False,
        "hidden_size": [8, 32, 8],
        "num_hidden_layers": [1, 5, 1],
        "num_attention_heads": [1, 4, 1],
        "intermediate_size": [1, 64, 1],
        "supernet": {
            "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64,
        },
    }  # fmt: skip


# Errors


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"granularity": "medium"}, "granularity must be 'coarse' or 'fine', got 'medium'"),
        ({"stock_only": True, "layer_wise": True}, "stock_only=True needs layer_wise=False"),
        (
            {"hidden_size": range(1, 34)},
            "hidden_size: sizes must be an ascending range within 1 to 32, got range(1, 34)",
        ),
        ({"num_hidden_layers": range(3)}, "num_hidden_layers: sizes must be an ascending range within 1 to 5"),
        (
            {"num_attention_heads": range(4, 0, -1)},
            "num_attention_heads: sizes must be an ascending range within 1 to 4",
        ),
        ({"hidden_size": [16, 32]}, "hidden_size: sizes must be a range such as range(1, 33, 1), got [16, 32]"),
        ({"head_dim": 4}, "head_dim: sizes must be a range such as range(2, 9, 2), got 4"),
        ({"intermediate_size": range(5, 5)}, "intermediate_size: sizes must be an ascending range within 1 to 64"),
    ],
)
def test_choice_that_does_not_fit_is_an_error(choices, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        SearchSpace.from_config(CONFIG, **choices)


def test_model_whose_layers_differ_is_an_error():
    layers = [make_config(num_attention_heads=heads) for heads in (4, 3)]
    config = make_config(num_hidden_layers=2, is_heterogeneous=True, per_layer_config=layers, head_dim=8)
    with pytest.raises(SubnetError, match="a search space needs a super-network whose layers are all alike"):
        SearchSpace.from_config(config)
