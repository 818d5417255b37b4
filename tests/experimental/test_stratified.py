"""Draws from equal parts of a bin; `tests/search` holds them to what every search algorithm keeps to."""

import pytest
from fixtures_search import BIN, CONFIG, FEW

from hf_whittle import ParameterBin, RandomSearchConfig, SearchSpace, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.errors import BinError
from hf_whittle.experimental.stratified import StratifiedSearchConfig, split_bin

SPACE = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)


def search(bin=BIN, space=SPACE, config=None, **settings):
    config = config or StratifiedSearchConfig(**{"evaluations": 20, "num_draws": 6} | settings)
    return search_subnets(None, space, bin=bin, config=config, fitness=lambda subnet: 1.0, progress=False)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_parts_of_a_bin_are_equal_and_join(parts):
    split = split_bin(SPACE, BIN, parts)
    width = (BIN.high - BIN.low) / parts
    assert len(split) == parts
    assert [part.low for part in split] == pytest.approx([BIN.low + i * width for i in range(parts)])
    assert [part.high for part in split[:-1]] == [part.low for part in split[1:]]
    assert split[-1].high == pytest.approx(BIN.high)


def test_every_stratum_gets_as_many_candidates():
    result = search(strata=4, evaluations=40)
    costs = [e.cost for e in result.evaluations]
    assert [sum(part.low <= cost < part.high for cost in costs) for part in split_bin(SPACE, BIN, 4)] == [10] * 4


def test_one_stratum_is_random_search():
    plain = search(config=RandomSearchConfig(evaluations=20, num_draws=6))
    assert search(strata=1).evaluations == plain.evaluations


def test_stratum_out_of_reach_leaves_its_share_to_the_others():
    most = num_parameters(CONFIG)
    result = search(ParameterBin(0.6 * most, 2.6 * most), strata=4)
    assert len(result.answers) == 20


def test_exhausted_stratum_does_not_end_the_search():
    everything = {e.subnet for e in search(ParameterBin(0, 1e9), FEW, strata=1).evaluations}
    costs = sorted(num_parameters(CONFIG, subnet) for subnet in everything)
    assert len(everything) == 4
    bin = ParameterBin(costs[0] - 1, 2 * costs[1] - costs[0] - 3)  # one subnet in the lower half, others in the upper
    result = search(bin, FEW, strata=2, num_draws=1, evaluations=400)
    inside = {subnet for subnet in everything if bin.contains(CONFIG, subnet)}
    assert {e.subnet for e in result.evaluations} == inside


def test_bin_without_a_subnet_is_an_error():
    with pytest.raises(BinError, match="no subnet of this space lies in the bin 1 to 2"):
        StratifiedSearchConfig(strata=4).algorithm(SPACE, ParameterBin(1, 2))


def test_no_stratum_is_an_error():
    with pytest.raises(ValueError, match="strata must be at least 1, got 0"):
        StratifiedSearchConfig(strata=0)
