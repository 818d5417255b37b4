"""Features of a subnet against numbers worked out by hand."""

from random import Random

import numpy as np
import pytest
from fixtures_search import CONFIG

from hf_whittle import ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.architectures.dimensions import HEAD_CHANNELS, QUERIES
from hf_whittle.cost import Polynomial
from hf_whittle.search.algorithms.features import features
from hf_whittle.subnet import Shape

FULL = Shape(8, (4,) * 4, (16,) * 4)
COST = Polynomial({(): 10, ("intermediate_size",): 1})
LAYOUT, CHANNELS, OF_HEADS = slice(5, 11), slice(11, 13), slice(13, 22)
ANY_SIZE = ParameterBin(0, 1e18)


def widths(vector, depth):
    """Widths of heads and of neurons, at every layer."""
    return vector[22 : 22 + depth], vector[31 + depth :]


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        (
            SubnetConfig(4, 2, 2, 8),
            {
                "shares": [1 / 2, 1 / 2, 26 / 74, 4 / 16, 16 / 64],
                "layout": [0, 2 / 4, 0.5 / 4, 2 / 4, 2 / 4, 1 / 4],
                "channels": [1.5 / 8, 1],
                "heads": [0.5, 0, 0.5, 0.5, 0, 0.5, 0.5],
                "where heads are": [0.5 / 4, 1],
                "heads by layer": [0.5, 0.5, 0, 0],
                "neurons": [0.5, 0, 0.5, 0.5, 0, 0.5, 0.5],
                "where neurons are": [3.5 / 16, 1],
                "neurons by layer": [0.5, 0.5, 0, 0],
            },
        ),
        (
            SubnetConfig([1, 3, 6], [0, 3], [[1, 3], 4], [[2, 9, 15], 8]),
            {
                "shares": [3 / 8, 2 / 4, 21 / 74, 6 / 16, 11 / 64],
                "layout": [0, 0, 1.5 / 4, 1 / 4, 2 / 4, 1 / 4],
                "channels": [10 / 3 / 8, 1 / 3],
                "heads": [0.75, 0.25, 0.5, 1, 1, 0.5, 1],
                "where heads are": [(2 / 4 + 1.5 / 4) / 2, (1 / 2 + 1) / 2],
                "heads by layer": [0.5, 0, 0, 1],
                "neurons": [11 / 32, 5 / 32, 3 / 16, 1 / 2, 5 / 8, 3 / 16, 1 / 2],
                "where neurons are": [(26 / 3 / 16 + 3.5 / 16) / 2, (1 / 3 + 1) / 2],
                "neurons by layer": [3 / 16, 0, 0, 1 / 2],
            },
        ),
        (
            SubnetConfig(8, [2], 1, 16),
            {
                "shares": [1, 1 / 4, 26 / 74, 1 / 16, 16 / 64],
                "layout": [2 / 4, 1 / 4, 2 / 4, 1 / 4, 2 / 4, 2 / 4],
                "channels": [3.5 / 8, 1],
                "heads": [0.25, 0, 0.25, 0.25, 0, 0.25, 0.25],
                "where heads are": [0, 1],
                "heads by layer": [0, 0, 0.25, 0],
                "neurons": [1, 0, 1, 1, 0, 1, 1],
                "where neurons are": [7.5 / 16, 1],
                "neurons by layer": [0, 0, 1, 0],
            },
        ),
    ],
    ids=["coarse", "fine", "single layer"],
)
def test_features_are_those_worked_out_by_hand(subnet, expected):
    np.testing.assert_allclose(features(subnet, FULL, COST), np.concatenate(list(expected.values())), rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "begins", "ends", "middle", "run", "gap", "gaps"),
    [
        ([0, 1, 2, 3, 4, 5], 0, 0, 2.5, 6, 0, 0),
        ([1, 2, 4], 1, 1, 7 / 3, 2, 1, 3),
        ([0, 3, 4, 5], 0, 0, 3, 3, 2, 1),
        ([0, 2, 4], 0, 1, 2, 1, 1, 3),
        ([5], 5, 0, 5, 1, 5, 1),
    ],
)
def test_layout_is_where_layers_lie(layers, begins, ends, middle, run, gap, gaps):
    vector = features(SubnetConfig(8, layers, 2, 8), Shape(8, (4,) * 6, (16,) * 6), COST)
    np.testing.assert_allclose(vector[LAYOUT], np.array([begins, ends, middle, run, gap, gaps]) / 6)


def test_dimensions_that_need_not_be_named_are_described_where_asked_for():
    full = Shape(8, None, (16,) * 4, (2,) * 4, 4, 8)
    subnet = SubnetConfig(4, 2, None, 8, 1, [1, 3], [2, 3])
    plain = features(subnet, full, COST)
    vector = features(subnet, full, COST, optional=[QUERIES, HEAD_CHANNELS])
    np.testing.assert_array_equal(vector[: len(plain)], plain)
    np.testing.assert_allclose(vector[len(plain) :], [2 / 4, 2 / 4, 1 / 2, 2 / 8, 2.5 / 8, 0])
    whole = features(SubnetConfig(4, 2, None, 8, 1), full, COST, optional=[QUERIES, HEAD_CHANNELS])
    np.testing.assert_allclose(whole[len(plain) :], [1, 1.5 / 4, 1, 1, 3.5 / 8, 1])


def test_key_value_heads_take_the_place_of_heads():
    of_heads = features(SubnetConfig(4, 2, 1, 8), Shape(8, (2,) * 4, (16,) * 4), COST)
    of_key_value_heads = features(SubnetConfig(4, 2, None, 8, 1), Shape(8, None, (16,) * 4, (2,) * 4), COST)
    np.testing.assert_array_equal(of_heads, of_key_value_heads)


def test_halves_of_an_odd_number_of_layers_share_the_middle_one():
    vector = features(SubnetConfig(8, [0, 1, 3], [1, 2, 4], 8), FULL, COST)
    slope = (1 - 0.25) / 2
    expected = [1.75 / 3, np.std([0.25, 0.5, 1]), 0.25, 1, 3 * slope, 0.75 / 2, 1.5 / 2, (0 + 0.5 + 1.5) / 3 / 4, 1]
    np.testing.assert_allclose(vector[OF_HEADS], expected)


@pytest.mark.parametrize("by", ["heads", "neurons", "layers", "channels"])
def test_other_entries_of_equal_sizes_have_other_features(by):
    first = {"channels": [0, 2], "layers": [0, 2], "heads": [0, 2], "neurons": [0, 2]}
    second = {**first, by: [1, 3]}
    one, other = (
        features(SubnetConfig(v["channels"], v["layers"], [v["heads"]] * 2, [v["neurons"]] * 2), FULL, COST)
        for v in (first, second)
    )
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
@pytest.mark.parametrize("layer_wise", [False, True])
def test_features_of_all_subnets_are_as_many_and_finite(granularity, layer_wise):
    space, full = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise), Shape.from_config(CONFIG)
    cost, rng = ANY_SIZE.cost(CONFIG), Random(0)
    drawn = [space.sample(rng, ANY_SIZE) for _ in range(100)]
    assert {subnet.shape.num_hidden_layers for subnet in drawn} == {1, 2, 3, 4, 5}
    vectors = np.stack([features(subnet, full, cost) for subnet in [*drawn, SubnetConfig.full(CONFIG)]])
    assert vectors.dtype == np.float64
    assert np.isfinite(vectors).all()
    assert vectors.min(axis=0)[[0, 1, 2, 3, 4]].min() > 0 and (vectors[-1, :5] == 1).all()


@pytest.mark.parametrize(
    "subnet", [SubnetConfig(1, 1, 1, 1), SubnetConfig([7], [3], [[3]], [[15]]), SubnetConfig.full(FULL)]
)
def test_features_of_the_smallest_and_the_largest_subnet_are_finite(subnet):
    vector = features(subnet, FULL, COST)
    assert vector.shape == (39,) and np.isfinite(vector).all()


def test_features_of_a_super_network_of_one_layer_are_finite():
    vector = features(SubnetConfig(4, 1, 2, 8), Shape(8, (4,), (16,)), COST, depth=4)
    assert vector.shape == (39,) and np.isfinite(vector).all()
    np.testing.assert_array_equal(widths(vector, 4), np.full((2, 4), 0.5))


@pytest.mark.parametrize(
    ("layers", "depth", "read"),
    [
        (4, None, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (8, 4, [0, 2, 4, 6]),
        (12, 4, [0, 3, 6, 9]),
        (2, 4, [0, 0, 1, 1]),
        (3, 4, [0, 0, 1, 2]),
    ],
)
def test_super_network_of_another_depth_is_read_at_the_same_relative_layers(layers, depth, read):
    heads, neurons = [layer + 1 for layer in range(layers)], [3 * layer + 2 for layer in range(layers)]
    full = Shape(8, (16,) * layers, (64,) * layers)
    vector = features(SubnetConfig(8, layers, heads, neurons), full, COST, depth)
    assert vector.shape == (39,)
    by_heads, by_neurons = widths(vector, 4)
    assert by_heads.tolist() == [heads[layer] / 16 for layer in read]
    assert by_neurons.tolist() == [neurons[layer] / 64 for layer in read]


def test_twice_the_super_network_with_twice_of_everything_kept_has_the_same_shares():
    subnet, twice = SubnetConfig(4, 2, 2, 8), SubnetConfig(8, 4, 4, 16)
    cost = Polynomial({("intermediate_size",): 1})
    one = features(subnet, FULL, cost)
    other = features(twice, Shape(16, (8,) * 8, (32,) * 8), cost, depth=4)
    assert one[:5].tolist() == other[:5].tolist()
    np.testing.assert_array_equal(widths(one, 4), widths(other, 4))
