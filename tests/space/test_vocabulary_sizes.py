"""Spaces whose subnets keep parts of the vocabulary."""

import json
from random import Random

import pytest
from small_models import settings_of
from transformers import AutoConfig

from hf_whittle import FlopsBin, KVCacheBin, ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.architectures.dimensions import VOCABULARY
from hf_whittle.architectures.registry import ARCHITECTURES
from hf_whittle.cost import flops_per_token, kv_cache_bytes_per_token, num_parameters
from hf_whittle.errors import BinError, SubnetError
from hf_whittle.subnet import count

ANY_SIZE = ParameterBin(0, 1e18)
ORDER = [98, 0, *range(50, 70), *range(1, 50)]
KINDS = {
    "coarse": {},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "stock only": {"granularity": "fine", "stock_only": True},
}


def make_space(model_type="llama", vocab_sizes=(60, 20, 99), token_order=None, changes=None, **choices):
    config = AutoConfig.for_model(model_type, **settings_of(model_type, **(changes or {})))
    return SearchSpace.from_config(config, vocab_sizes=vocab_sizes, token_order=token_order, **choices)


def kept_tokens(order, size):
    if size == 99:
        return None
    return size if order is None else tuple(sorted(order[:size]))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("order", [None, ORDER], ids=["by id", "ranked"])
def test_moves_stay_in_the_space_and_in_the_bin_and_choose_every_vocabulary(model_type, kind, order):
    space, seen = make_space(model_type, token_order=order, **kind), set()
    for seed in range(4):
        rng = Random(seed)
        size = num_parameters(space.config, space.sample(rng, ANY_SIZE))
        bin = ParameterBin(size * 0.9, size * 1.1)
        first, second = space.mutate(space.sample(rng, ANY_SIZE), rng, bin), space.sample(rng, bin)
        for _ in range(4):
            for subnet in (first, second):
                assert space.contains(subnet) and bin.contains(space.config, subnet)
                assert subnet.vocab_size == kept_tokens(order, subnet.shape.filled(space.full).vocab_size)
                seen.add(subnet.vocab_size)
            first, second = space.mutate(first, rng, bin), space.crossover(first, second, rng, bin)
    assert seen == {kept_tokens(order, size) for size in (20, 60, 99)}


def test_a_space_that_keeps_all_tokens_is_what_it_was():
    plain, named = make_space(vocab_sizes=None), make_space(vocab_sizes=[99])
    assert "vocab_size" not in json.dumps(plain.to_dict())
    assert plain.to_dict() == named.to_dict()
    first, second = ([space.sample(Random(seed), ANY_SIZE) for seed in range(5)] for space in (plain, named))
    assert first == second


def test_other_tokens_make_another_space():
    space, other = make_space(token_order=ORDER), make_space()
    assert space.to_dict()["vocab_sizes"] == [20, 60, 99] and space.to_dict() != other.to_dict()
    full = SubnetConfig.full(space.config)
    assert space.contains(full.replaced({VOCABULARY: sorted(ORDER[:20])}))
    first = make_space(token_order=[*range(19, -1, -1), *range(20, 99)])
    assert first.tokens.choose(None, 20) == 20 and first.contains(full.replaced({VOCABULARY: 20}))
    for tokens in (20, 21, sorted(ORDER[1:21])):
        assert not space.contains(full.replaced({VOCABULARY: tokens}))


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"vocab_sizes": (0, 99)}, "vocab_sizes: sizes must be whole numbers within 1 to 99"),
        ({"vocab_sizes": (10, 100)}, "vocab_sizes: sizes must be whole numbers within 1 to 99"),
        ({"vocab_sizes": (10, 10)}, "vocab_sizes: sizes must be whole numbers within 1 to 99"),
        ({"token_order": ORDER[:59]}, "token_order: expected at least 60 ids of tokens"),
        ({"token_order": [*ORDER, 0]}, "token_order: expected at least 60 ids of tokens"),
        ({"token_order": [*ORDER, 99]}, "token_order: expected at least 60 ids of tokens"),
        ({"changes": {"eos_token_id": 20}}, "leaves out token 20, the eos_token_id of the model"),
    ],
)
def test_sizes_and_orders_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(SubnetError, match=message):
        make_space(**choices)


# Costs of a text

RATES = {20: 0.9, 60: 0.5, 99: 0.25}


@pytest.mark.parametrize(
    "of_token, of_text",
    [
        (
            lambda config, subnet: flops_per_token(config, subnet, sequence_length=16),
            lambda low, high: FlopsBin(low, high, 16, tokens_per_byte=RATES),
        ),
        (kv_cache_bytes_per_token, lambda low, high: KVCacheBin(low, high, tokens_per_byte=RATES)),
    ],
    ids=["FLOPs", "cache"],
)
def test_a_text_costs_its_tokens(of_token, of_text):
    space = make_space(layer_wise=True)

    def cost(subnet):
        return of_token(space.config, subnet) * RATES[count(subnet.vocab_size or 99)]

    rng = Random(0)
    target = cost(space.sample(rng, ANY_SIZE))
    bin = of_text(target * 0.8, target * 1.2)
    subnets = [space.sample(rng, bin) for _ in range(30)]
    for subnet in subnets:
        assert bin.cost(space.config)(subnet) == pytest.approx(cost(subnet), rel=1e-9)
        assert bin.low <= cost(subnet) <= bin.high
    assert len({subnet.vocab_size for subnet in subnets}) > 1
    assert json.loads(json.dumps(bin.to_dict()))["cost"].endswith("per byte of text")


def test_bins_of_tokens_are_written_as_before():
    assert FlopsBin(1, 2, 16).to_dict() == {"cost": "FLOPs per token", "low": 1, "high": 2, "sequence_length": 16}


def test_rates_that_do_not_fit_are_refused():
    with pytest.raises(BinError, match="tokens_per_byte must be numbers above 0"):
        KVCacheBin(0, 1, tokens_per_byte={20: 0})
    space = make_space()
    with pytest.raises(BinError, match="tokens_per_byte has no number for a vocabulary of 60 tokens, only for 20, 99"):
        space.sample(Random(0), KVCacheBin(0, 1e9, tokens_per_byte={20: 1, 99: 1}))


# SubnetConfig


def test_tokens_are_written_as_runs():
    tokens = [0, 1, 2, 3, 7, 8, 10, *range(20, 90)]
    subnet = SubnetConfig(32, 2, 4, 64, vocab_size=tokens)
    assert subnet.to_dict()["vocab_size"] == [[0, 3], 7, 8, 10, [20, 89]]
    assert SubnetConfig.from_json(subnet.to_json()) == subnet
    assert SubnetConfig(32, 2, 4, 64, vocab_size=range(9)).to_dict()["vocab_size"] == 9
    assert "vocab_size" not in SubnetConfig(32, 2, 4, 64).to_json()


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([[3, 1]], r"a run of indices is a list of its first and last, got \[3, 1\]"),
        ([[1, 2, 3]], "a run of indices is a list of its first and last"),
        ([5, 4], "vocab_size: indices must ascend"),
        (0, "vocab_size: a subnet keeps at least 1 entry"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(tokens, message):
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with pytest.raises(SubnetError, match=message):
        SubnetConfig.from_dict({**values, "vocab_size": tokens})


def test_tokens_that_the_model_lacks_are_refused():
    space = make_space()
    with pytest.raises(SubnetError, match="vocab_size: cannot keep 100 tokens, the super-network has 99"):
        SubnetConfig.full(space.config).replaced({VOCABULARY: 100}).validate(space.config)
