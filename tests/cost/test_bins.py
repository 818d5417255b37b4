"""Bins of every cost: what a space draws lies in them, and what cannot is an error that gives the range."""

import itertools
import json
import re
from random import Random

import fixtures_search
import pytest
from fixtures_search import BIN, CONFIG

from hf_whittle import (
    EvolutionConfig,
    FlopsBin,
    KVCacheBin,
    LatencyBin,
    LatencyModel,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    WeightBytesBin,
    search_subnets,
)
from hf_whittle.cost import flops_per_token, kv_cache_bytes_per_token, num_parameters, weight_bytes
from hf_whittle.cost.latency import fingerprint_of_sizes
from hf_whittle.errors import BinError, OutputError

SECONDS = LatencyModel(
    polynomial=fixtures_search.SECONDS,
    error=0.02,
    device="CPU, 1 thread",
    dtype="float32",
    batch_size=1,
    sequence_length=16,
    phase="prefill",
    supernet=fingerprint_of_sizes(CONFIG),
)

BINS = {
    "parameters": (BIN, lambda subnet: num_parameters(CONFIG, subnet)),
    "parameters without embeddings": (
        ParameterBin(14_000, 16_000, embeddings=False),
        lambda subnet: num_parameters(CONFIG, subnet, embeddings=False),
    ),
    "FLOPs": (
        FlopsBin(40_000, 44_000, sequence_length=16),
        lambda subnet: flops_per_token(CONFIG, subnet, sequence_length=16),
    ),
    "weight bytes": (
        WeightBytesBin(80_000, 88_000, bytes_per_value=4),
        lambda subnet: weight_bytes(CONFIG, subnet, bytes_per_value=4),
    ),
    "cache bytes": (KVCacheBin(160, 224), lambda subnet: kv_cache_bytes_per_token(CONFIG, subnet)),
    "seconds": (LatencyBin(4.0e-3, 4.1e-3, SECONDS), SECONDS),
}
KINDS = list(itertools.product(("coarse", "fine"), (False, True)))


@pytest.mark.parametrize(("bin", "cost"), BINS.values(), ids=BINS)
@pytest.mark.parametrize(("granularity", "layer_wise"), KINDS)
def test_draws_mutants_and_children_lie_in_the_bin(bin, cost, granularity, layer_wise):
    space, rng = SearchSpace.from_config(CONFIG, granularity, layer_wise=layer_wise), Random(0)
    subnets = [space.sample(rng, bin) for _ in range(20)]
    subnets += [space.mutate(subnet, rng, bin) for subnet in subnets]
    subnets += [space.crossover(*rng.sample(subnets, 2), rng, bin) for _ in range(20)]
    for subnet in subnets:
        assert space.contains(subnet)
        assert bin.low <= cost(subnet) <= bin.high
        assert bin.contains(CONFIG, subnet)


@pytest.mark.parametrize(("bin", "cost"), BINS.values(), ids=BINS)
def test_mutants_leave_the_bin_of_another_cost_for_their_own(bin, cost):
    space, rng = SearchSpace.from_config(CONFIG, "fine", layer_wise=True), Random(1)
    assert all(bin.contains(CONFIG, space.mutate(SubnetConfig.full(CONFIG), rng, bin)) for _ in range(10))


@pytest.mark.slow
@pytest.mark.parametrize(
    "bin", [FlopsBin(30_000, 34_000, sequence_length=8), KVCacheBin(64, 96)], ids=["FLOPs", "cache"]
)
def test_a_subnet_is_drawn_exactly_if_it_lies_in_the_bin(bin):
    sizes = {"hidden_size": range(8, 33, 8), "num_hidden_layers": range(1, 3), "intermediate_size": range(16, 65, 16)}
    space = SearchSpace.from_config(CONFIG, "coarse", layer_wise=True, **sizes)
    feasible = {
        subnet
        for channels, layers in itertools.product(sizes["hidden_size"], sizes["num_hidden_layers"])
        for heads in itertools.product(range(1, 5), repeat=layers)
        for neurons in itertools.product(sizes["intermediate_size"], repeat=layers)
        if bin.contains(CONFIG, subnet := SubnetConfig(channels, layers, heads, neurons))
    }
    rng = Random(0)
    assert {space.sample(rng, bin) for _ in range(20_000)} == feasible


@pytest.mark.parametrize(
    ("bin", "message"),
    [
        (KVCacheBin(1, 2), "no subnet of this space lies in the bin 1 to 2; its subnets have 32 to 640"),
        (FlopsBin(1, 2, sequence_length=16), "lies in the bin 1 to 2; its subnets have "),
        (WeightBytesBin(1e9, 2e9), "lies in the bin 1,000,000,000 to 2,000,000,000; its subnets have "),
        (ParameterBin(1, 2, embeddings=False), "lies in the bin 1 to 2; its subnets have 67 to 42,784"),
        (LatencyBin(1, 2, SECONDS), "lies in the bin 1 to 2; its subnets have 0.00261331 to 0.0079784: choose"),
    ],
)
def test_bin_out_of_reach_is_an_error_that_gives_the_range(bin, message):
    space = SearchSpace.from_config(CONFIG)
    with pytest.raises(BinError, match=re.escape(message)):
        space.sample(Random(0), bin)
    low, high = space.reachable_costs(bin.cost(CONFIG))
    with pytest.raises(BinError, match=re.escape(f"{low:,.10g} to {high:,.10g}")):
        space.sample(Random(0), bin)


@pytest.mark.parametrize("bin_class", [ParameterBin, WeightBytesBin, KVCacheBin])
def test_bin_upside_down_is_an_error(bin_class):
    with pytest.raises(BinError, match="a bin needs 0 <= low <= high, got low=2, high=1"):
        bin_class(2, 1)


def test_records_of_bins_survive_json_and_tell_them_apart():
    records = [bin.to_dict() for bin, _ in BINS.values()]
    assert [json.loads(json.dumps(record)) for record in records] == records
    assert len({json.dumps(record) for record in records}) == len(BINS)


def search(folder, bin, stop_at=None):
    asked = []

    def fitness(subnet):
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(subnet)
        return int(subnet.digest, 16) / 7e13

    fitness.settings = {"name": "digest"}

    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    config = EvolutionConfig(generations=2, population_size=6, num_offspring=5, num_elites=3)
    search_subnets(None, space, bin=bin, config=config, fitness=fitness, output_dir=folder, progress=False)
    return asked


def test_search_of_a_flops_bin_resumes_to_the_same_bytes(tmp_path):
    bin, cost = BINS["FLOPs"]
    assert all(bin.low <= cost(subnet) <= bin.high for subnet in search(tmp_path / "whole", bin))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "twice", bin, stop_at=9)
    assert len(search(tmp_path / "twice", bin)) == 7
    for name in ("candidates.jsonl", "search.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_search_of_another_cost_is_another_search(tmp_path):
    search(tmp_path, FlopsBin(40_000, 44_000, sequence_length=16))
    with pytest.raises(OutputError, match="holds a search with another bin"):
        search(tmp_path, FlopsBin(40_000, 44_000, sequence_length=32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlopsBin(1, 2, sequence_length=0), "sequence_length must be above 0, got 0"),
        (lambda: KVCacheBin(1, 2, bytes_per_value=-2), "bytes_per_value must be above 0, got -2"),
        (lambda: WeightBytesBin(1, 2, bytes_per_value=0), "bytes_per_value must be above 0, got 0"),
    ],
)
def test_setting_out_of_range_is_an_error(make, message):
    with pytest.raises(BinError, match=message):
        make()
