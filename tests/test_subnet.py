"""SubnetConfig: canonical form, JSON, composition, and the message of every error."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_whittle import SubnetConfig
from hf_whittle.errors import SubnetError, WhittleError
from hf_whittle.subnet import Shape, count, indices

SHAPE = Shape(hidden_size=8, num_attention_heads=(4, 3, 2), intermediate_size=(16, 12, 10))


def kept(size):
    """Any way to keep some of `size` entries, as a number or as indices."""
    return st.integers(1, size) | st.sets(st.integers(0, size - 1), min_size=1).map(sorted)


@st.composite
def subnets(draw, shape=SHAPE):
    layers = draw(kept(shape.num_hidden_layers))
    which = range(layers) if isinstance(layers, int) else layers
    return SubnetConfig(
        hidden_size=draw(kept(shape.hidden_size)),
        num_hidden_layers=layers,
        num_attention_heads=[draw(kept(shape.num_attention_heads[layer])) for layer in which],
        intermediate_size=[draw(kept(shape.intermediate_size[layer])) for layer in which],
    )


def test_prefix_of_indices_is_stored_as_a_number():
    subnet = SubnetConfig([0, 1, 2], (0, 1), [[0], (0, 2)], [range(5), 7])
    assert subnet.to_dict() == {
        "hidden_size": 3,
        "num_hidden_layers": 2,
        "num_attention_heads": [1, (0, 2)],
        "intermediate_size": [5, 7],
    }


def test_single_number_stands_for_all_layers():
    assert SubnetConfig(3, [0, 2], 2, 5) == SubnetConfig(3, [0, 2], [2, 2], [5, 5])


def test_equal_subnets_are_equal_hash_equal_and_serialize_equal():
    by_index = SubnetConfig([0, 1, 2], [0, 1], [[0, 1], [1, 2]], [[0, 1, 2], 4])
    by_number = SubnetConfig(3, 2, ((0, 1), (1, 2)), (3, 4))
    assert by_index == by_number
    assert len({by_index, by_number}) == 1
    assert by_index.to_json() == by_number.to_json()
    assert by_index.digest == by_number.digest


@pytest.mark.parametrize(
    "other",
    [
        SubnetConfig(4, 2, 2, 5),
        SubnetConfig(3, [0, 2], 2, 5),
        SubnetConfig(3, 2, [2, 1], 5),
        SubnetConfig(3, 2, 2, [5, [0, 1, 2, 3, 5]]),
    ],
)
def test_subnets_that_keep_something_else_differ(other):
    subnet = SubnetConfig(3, 2, 2, 5)
    assert other != subnet
    assert other.digest != subnet.digest


@given(subnets())
def test_json_round_trips_byte_for_byte(subnet):
    text = subnet.to_json()
    again = SubnetConfig.from_json(text)
    assert again == subnet
    assert again.to_json().encode() == text.encode()
    assert text == json.dumps(subnet.to_dict(), separators=(",", ":"))
    assert "\n" not in text


def test_json_is_compact_and_keeps_the_order_of_the_dimensions():
    subnet = SubnetConfig(3, [0, 2], [1, [0, 2]], 5)
    assert subnet.to_json() == (
        '{"hidden_size":3,"num_hidden_layers":[0,2],"num_attention_heads":[1,[0,2]],"intermediate_size":[5,5]}'
    )


def test_folder_round_trip(tmp_path):
    subnet = SubnetConfig([1, 4], [0, 2], [1, [0, 2]], 5)
    subnet.save_pretrained(tmp_path)
    assert (tmp_path / "subnet.json").read_text() == subnet.to_json() + "\n"
    assert SubnetConfig.from_pretrained(tmp_path) == subnet


def test_pickle_round_trip():
    subnet = SubnetConfig([1, 4], [0, 2], [1, [0, 2]], 5)
    assert pickle.loads(pickle.dumps(subnet)) == subnet


def test_is_frozen():
    with pytest.raises(AttributeError, match="hidden_size"):
        SubnetConfig(3, 2, 2, 5).hidden_size = 4


def test_full_keeps_every_entry_of_every_layer():
    full = SubnetConfig.full(SHAPE)
    assert full == SubnetConfig(8, 3, [4, 3, 2], [16, 12, 10])
    assert full.shape == SHAPE


@given(subnets())
def test_shape_counts_the_kept_entries(subnet):
    assert subnet.shape.hidden_size == len(indices(subnet.hidden_size))
    assert subnet.shape.num_hidden_layers == len(subnet.layers)
    assert subnet.shape.num_attention_heads == tuple(len(indices(heads)) for heads in subnet.num_attention_heads)
    assert subnet.shape.intermediate_size == tuple(count(neurons) for neurons in subnet.intermediate_size)


@pytest.mark.parametrize(
    ("subnet", "uniform"),
    [
        (SubnetConfig(3, 2, 2, 5), True),
        (SubnetConfig(3, 2, [[0, 1], [1, 2]], 5), True),
        (SubnetConfig(3, 2, [2, 1], 5), False),
        (SubnetConfig(3, 2, 2, [5, 6]), False),
    ],
)
def test_uniform_means_equal_sizes_not_equal_entries(subnet, uniform):
    assert subnet.is_uniform is uniform


def _picked(names, subnet):
    """Pick the kept entries from a nested table of names."""
    channels, layers = names
    return (
        [channels[i] for i in indices(subnet.hidden_size)],
        [
            ([layers[i][0][h] for h in indices(heads)], [layers[i][1][n] for n in indices(neurons)])
            for i, heads, neurons in zip(
                subnet.layers, subnet.num_attention_heads, subnet.intermediate_size, strict=True
            )
        ],
    )


@given(st.data())
def test_composition_keeps_what_picking_twice_keeps(data):
    outer = data.draw(subnets())
    inner = data.draw(subnets(outer.shape))
    sizes = zip(SHAPE.num_attention_heads, SHAPE.intermediate_size, strict=True)
    names = (
        list("abcdefgh"),
        [([f"{i}h{h}" for h in range(hs)], [f"{i}n{n}" for n in range(ns)]) for i, (hs, ns) in enumerate(sizes)],
    )
    assert _picked(names, outer.compose(inner)) == _picked(_picked(names, outer), inner)


@given(subnets())
def test_composition_with_the_full_subnet_changes_nothing(subnet):
    assert SubnetConfig.full(SHAPE).compose(subnet) == subnet
    assert subnet.compose(SubnetConfig.full(subnet.shape)) == subnet


def test_composition_checks_the_inner_subnet_against_the_student():
    with pytest.raises(SubnetError, match=re.escape("hidden_size: cannot keep 4 channels, the super-network has 3")):
        SubnetConfig(3, 2, 2, 5).compose(SubnetConfig(4, 2, 2, 5))


VALID = {"hidden_size": 3, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: a subnet keeps at least 1 entry, got 0"),
        ({"hidden_size": -3}, "hidden_size: a subnet keeps at least 1 entry, got -3"),
        ({"hidden_size": []}, "hidden_size: a subnet keeps at least 1 entry, got none"),
        ({"hidden_size": [-1, 2]}, "hidden_size: indices must not be negative, got -1"),
        ({"hidden_size": [1, 1, 2]}, "hidden_size: every index may be kept once, got 1 more than once"),
        ({"hidden_size": [2, 0, 1]}, "hidden_size: indices must ascend, got [2, 0, 1]...; sort them"),
        ({"hidden_size": [0, 1.5]}, "hidden_size: indices must be whole numbers, got 1.5"),
        ({"hidden_size": 2.5}, "hidden_size: expected a number or ascending indices, got 2.5"),
        ({"hidden_size": "3"}, "hidden_size: expected a number or ascending indices, got '3'"),
        ({"hidden_size": True}, "hidden_size: expected a number or ascending indices, got True"),
        ({"num_hidden_layers": [3, 1]}, "num_hidden_layers: indices must ascend, got [3, 1]...; sort them"),
        (
            {"num_attention_heads": [2, 2, 2]},
            "num_attention_heads: got 3 entries for 2 kept layers; give one for each kept layer, or a single number",
        ),
        ({"intermediate_size": [5]}, "intermediate_size: got 1 entries for 2 kept layers"),
        (
            {"intermediate_size": None},
            "intermediate_size: expected a number or one entry for each kept layer, got None",
        ),
        (
            {"intermediate_size": "55"},
            "intermediate_size: expected a number or one entry for each kept layer, got '55'",
        ),
        ({"num_attention_heads": 0}, "num_attention_heads of layer 0: a subnet keeps at least 1 entry, got 0"),
        (
            {"num_hidden_layers": [1, 4], "num_attention_heads": [2, [1, 0]]},
            "num_attention_heads of layer 4: indices must ascend",
        ),
        ({"intermediate_size": [5, []]}, "intermediate_size of layer 1: a subnet keeps at least 1 entry, got none"),
        ({"intermediate_size": [[-2], 5]}, "intermediate_size of layer 0: indices must not be negative, got -2"),
    ],
)
def test_contradiction_is_an_error_that_names_dimension_and_layer(change, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        SubnetConfig(**{**VALID, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 33}, "hidden_size: cannot keep 33 channels, the super-network has 32; keep 1 to 32"),
        (
            {"hidden_size": [0, 32]},
            "hidden_size: index 32 is out of range, the super-network has 32 channels; use 0 to 31",
        ),
        ({"num_hidden_layers": 6}, "num_hidden_layers: cannot keep 6 layers, the super-network has 5; keep 1 to 5"),
        (
            {"num_hidden_layers": [1, 5]},
            "num_hidden_layers: index 5 is out of range, the super-network has 5 layers; use 0 to 4",
        ),
        (
            {"num_hidden_layers": [0, 3], "num_attention_heads": [4, 5]},
            "num_attention_heads of layer 3: cannot keep 5 heads, the super-network has 4; keep 1 to 4",
        ),
        (
            {"num_attention_heads": [[0, 4], 4]},
            "num_attention_heads of layer 0: index 4 is out of range, the super-network has 4 heads; use 0 to 3",
        ),
        (
            {"intermediate_size": [64, 65]},
            "intermediate_size of layer 1: cannot keep 65 neurons, the super-network has 64; keep 1 to 64",
        ),
        ({"intermediate_size": [[64], 1]}, "intermediate_size of layer 0: index 64 is out of range"),
    ],
)
def test_more_than_the_super_network_has_is_an_error(tiny_config, change, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        SubnetConfig(**{**VALID, **change}).validate(tiny_config)


@pytest.mark.parametrize(
    ("heads", "got"),
    [
        ({"num_attention_heads": 2, "num_key_value_heads": 1}, "got num_attention_heads and num_key_value_heads; give"),
        ({}, "got neither; give the one that SubnetConfig.full(config) of its super-network has"),
    ],
)
def test_both_kinds_of_heads_or_neither_is_an_error(heads, got):
    with pytest.raises(SubnetError, match=re.escape(got)):
        SubnetConfig(8, 2, intermediate_size=4, **heads)


def test_counts_are_checked_against_the_layer_they_are_kept_of():
    SubnetConfig(8, [0, 2], [4, 2], [16, 10]).validate(SHAPE)
    with pytest.raises(
        SubnetError, match="num_attention_heads of layer 2: cannot keep 3 heads, the super-network has 2"
    ):
        SubnetConfig(8, [0, 2], [4, 3], [16, 10]).validate(SHAPE)


@pytest.mark.parametrize("text", ["{}", '{"hidden_size":1}', "[1,2]", "3"])
def test_json_of_something_else_is_an_error_that_names_the_keys(text):
    with pytest.raises(SubnetError, match=r"a subnet has the keys \['hidden_size', 'intermediate_size'"):
        SubnetConfig.from_json(text)


def test_errors_are_also_value_errors():
    with pytest.raises(ValueError, match="hidden_size"):
        SubnetConfig(0, 1, 1, 1)
    assert issubclass(SubnetError, WhittleError)


def test_arrays_and_tensors_of_indices_are_taken_as_they_are():
    by_hand = SubnetConfig([0, 2, 5], [1, 3], [[0, 2], [1]], [3, 4])
    arrays = SubnetConfig(
        np.array([0, 2, 5]), torch.tensor([1, 3]), [np.array([0, 2]), torch.tensor([1])], np.array([3, 4])
    )
    assert arrays == by_hand and arrays.to_json() == by_hand.to_json()
