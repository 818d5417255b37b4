"""The parts of the ranking study that decide its figures: rows, tau and the gradient-trace proxy."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from benchmarks.ranking import candidates, toy
from benchmarks.ranking.candidates import chosen, spread
from benchmarks.ranking.correlation import rank
from benchmarks.ranking.gradient_trace import GradientTrace, pearson
from benchmarks.ranking.rows import Row, Rows
from benchmarks.ranking.settings import Material
from benchmarks.ranking.study import Study, costs, is_fitness, is_truth, ranks, truth_name
from scipy.stats import kendalltau

from examples.paper.intervals import kendall_tau
from hf_whittle import EvolutionConfig, ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.cost import num_parameters


@pytest.fixture(scope="module")
def blocks(supernet):
    return torch.randint(supernet.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))


def draw(config, granularity, seed=0):
    space = SearchSpace.from_config(config, granularity=granularity, layer_wise=True)
    full = num_parameters(config)
    return space.sample(random.Random(seed), ParameterBin(0.5 * full, 0.8 * full))


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_rows_come_back_as_they_were_added(tmp_path, supernet, granularity):
    rows = Rows(tmp_path / "rows.jsonl")
    added = [Row("bin", granularity, "drawn", draw(supernet.config, granularity, seed)) for seed in range(2)]
    rows.check_facts("bin", {"text": "a"})
    for row in added:
        rows.add_subnet(row)
    rows.add_measurement(added[1], "perplexity", 12.5, seconds=3.0)
    assert list(Rows(rows.path).read().values()) == added
    assert added[1].measured == {"perplexity": {"value": 12.5, "seconds": 3.0}}
    assert rows.facts() == {"bin": {"text": "a"}}
    rows.check_facts("bin", {"text": "a"})
    with pytest.raises(ValueError, match="give the same model and text"):
        rows.check_facts("bin", {"text": "b"})


def test_a_long_list_of_entries_is_a_mask(tmp_path):
    subnet = SubnetConfig(tuple(range(0, 200, 2)), (0, 2), 4, (tuple(range(1, 400, 3)), 7))
    rows = Rows(tmp_path / "rows.jsonl")
    rows.add_subnet(Row("bin", "fine", "drawn", subnet))
    assert next(iter(rows.read().values())).subnet == subnet
    assert len(rows.path.read_text()) < 400


@pytest.mark.parametrize("values", [range(50), (1, 1, 2, 3, 3)], ids=["different", "ties"])
def test_tau_is_that_of_scipy(values):
    first = np.array(values, dtype=float)
    second = np.random.default_rng(0).permutation(first)
    assert math.isclose(kendall_tau(first, second), kendalltau(first, second).statistic)


def test_rank_averages_groups_and_compares_fitnesses_on_the_same_draws():
    noise = np.random.default_rng(0).normal(size=(2, 12))
    groups = {
        name: [
            {"truth": end, "right": 2.0 * end, "wrong": -end, "noisy": end + of_group[end]}
            for end in range(len(of_group))
        ]
        for name, of_group in zip("ab", noise, strict=True)
    } | {"too few": [{"truth": 0.0, "right": 1.0, "wrong": 0.0, "noisy": 0.0}]}
    found = rank(groups, "truth", "noisy")
    assert found["subnets"] == {"a": 12, "b": 12}
    assert found["overall"]["right"]["tau"] == 1.0
    assert found["overall"]["wrong"] == {
        "tau": -1.0,
        "tau_90": [-1.0, -1.0],
        "above_reference": found["overall"]["wrong"]["above_reference"],
    }
    expected = np.mean([kendalltau([r["noisy"] for r in groups[g]], range(12)).statistic for g in "ab"])
    assert found["overall"]["noisy"]["tau"] == pytest.approx(expected, abs=1e-3)
    low, high = found["overall"]["noisy"]["tau_90"]
    assert low < expected < high
    assert found["overall"]["right"]["above_reference"]["tau"] == pytest.approx(1 - expected, abs=2e-3)


def test_ranks_take_fitnesses_that_all_trained_subnets_have(supernet):
    truth = truth_name("sliced", 1024)
    subnet = SubnetConfig.full(supernet.config)
    rows = [
        Row(
            "bin",
            "coarse",
            "drawn",
            subnet,
            {truth: {"value": end}, "perplexity": {"value": end}, "half": {"value": 0}},
        )
        for end in range(6)
    ]
    del rows[0].measured["half"]
    rows.append(Row("bin", "coarse", "drawn", subnet, {truth: {"value": 9}}))  # not evaluated yet
    found = ranks(rows, "perplexity")
    assert found[truth]["subnets"] == {"bin": 6}
    assert found[truth]["overall"] == {"perplexity": {"tau": 1.0, "tau_90": [1.0, 1.0]}}
    assert not is_fitness(f"{truth}, rate 0.001")


def test_spread_takes_first_and_last():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(2), 4) == [0, 1]


@pytest.fixture
def study(supernet, tmp_path, monkeypatch):
    """A study of the tiny model, with tiny budgets."""
    monkeypatch.setattr(candidates, "RUNS", tmp_path)
    monkeypatch.setattr(candidates, "WIDE", EvolutionConfig(population_size=4, generations=0))
    monkeypatch.setitem(candidates.MUTANTS, False, 2)
    ids = torch.randint(supernet.config.vocab_size, (40, 8), generator=torch.Generator().manual_seed(0))
    material = Material(supernet, ids[:8], ids[8:24], ids[24:28], ids[28:32], ids[32:], "hash")
    setting = dataclasses.replace(
        toy.TOY[0],
        load=lambda: material,
        spaces=lambda material: {"coarse": SearchSpace.from_config(supernet.config, layer_wise=True)},
        subnets=5,
        bins=((0.5, 0.8),),
        budgets=(16, 32),
        rates=((1e-3, 1e-2), (1e-3,)),
        batch_size=1,
        healing_tokens=(64,),
        probes=(1,),
    )
    return Study(setting, Rows(tmp_path / "rows.jsonl"))


@pytest.mark.slow
def test_study_goes_on_from_its_rows(study):
    again = Study(study.setting, study.rows)
    for part in (study, again):
        part.choose()
        part.train()
        part.evaluate()
        lines = study.rows.path.read_text().splitlines()
        assert len(lines) == 1 + 5 + 5 * (4 + 7) + 2  # facts, subnets, trainings and fitnesses, rates
    assert not again._trainings
    rows = study.own_rows()
    assert all(sum(map(is_truth, row.measured)) == 4 and sum(map(is_fitness, row.measured)) == 7 for row in rows)
    tried = {name[-5:]: row["value"] for name, row in rows[0].measured.items() if ", rate " in name}
    assert rows[0].measured[truth_name("sliced", 16)]["value"] == min(tried.values())
    found = ranks(rows, "perplexity")
    assert set(found) == set(filter(is_truth, rows[0].measured))
    assert all(of_truth["subnets"] == {row.group: 5 for row in rows} for of_truth in found.values())
    assert costs(rows)["perplexity"]["tokens"] == 32


def test_near_good_subnets_are_spread_over_their_range(supernet):
    rows = [Row("bin", "coarse", str(number), draw(supernet.config, "fine", number)) for number in range(30)]
    pool = [(10.0 + number, row) for number, row in enumerate(rows)]
    near = [int(row.origin) for row in chosen([*pool[::-1], *pool], 6, near_good=True)]
    assert near == [0, 10, 4, 8, 2, 6]  # none is above twice the lowest, and any first ones are spread
    assert sorted(int(row.origin) for row in chosen(pool, 6, near_good=False)) == [0, 6, 12, 17, 23, 29]


def test_gradient_trace_of_the_full_supernet_counts_its_sub_blocks(supernet, blocks):
    fitness = GradientTrace(supernet, blocks, 2)
    layers = supernet.config.num_hidden_layers
    assert fitness(SubnetConfig.full(supernet.config)) == pytest.approx(-2 * layers)


def test_gradient_trace_sums_weighted_correlations_of_the_subnet(supernet, blocks):
    subnet = draw(supernet.config, "coarse")
    fitness = GradientTrace(supernet, blocks, len(blocks))
    gradients = {}
    for name, config in (("full", SubnetConfig.full(supernet.config)), ("subnet", subnet)):
        with supernet.active_subnet(config):
            loss = supernet(input_ids=blocks, labels=blocks).loss
            named = dict(supernet.named_parameters())
            gradients[name] = dict(
                zip(
                    named,
                    torch.autograd.grad(loss, named.values(), allow_unused=True, materialize_grads=True),
                    strict=True,
                )
            )
    full, expected = supernet.config, 0.0
    for index, layer in enumerate(subnet.layers):
        channels = subnet.shape.hidden_size / full.hidden_size
        shares = {
            "attention": channels * subnet.shape.num_attention_heads[index] / full.num_attention_heads,
            "mlp": channels * subnet.shape.intermediate_size[index] / full.intermediate_size,
        }
        for kind, share in shares.items():
            names = [n for n, g in gradients["full"].items() if f"layers.{layer}.{kind}." in n and g.ndim > 1]
            assert len(names) == 2
            flat = [torch.cat([gradients[which][n].flatten() for n in names]) for which in ("subnet", "full")]
            expected += share * np.corrcoef(*(vector.numpy() for vector in flat))[0, 1]
    assert -fitness(subnet) == pytest.approx(expected, rel=1e-3)


def test_correlation_with_a_constant_is_zero():
    assert pearson(torch.zeros(4), torch.arange(4.0)) == 0.0
