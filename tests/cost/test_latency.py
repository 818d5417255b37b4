"""Latency: measured on the device, and fitted as a polynomial of a subnet's sizes."""

import copy
import json
import re
from random import Random

import pytest
import torch
from fixtures_search import SECONDS as TRUE

import hf_whittle.cost.timing
from hf_whittle import LatencyBin, LatencyModel, ParameterBin, SearchSpace, SubnetConfig, measure_latency
from hf_whittle.cost.latency import fit_polynomial, latency_polynomial
from hf_whittle.cost.timing import Latency
from hf_whittle.errors import CheckpointError, SubnetError
from hf_whittle.models.placement import device_name
from hf_whittle.subnet import Shape

QUICK = {"sequence_length": 16, "warmup": 1, "repeats": 5}


@pytest.fixture
def space(tiny_config):
    return SearchSpace.from_config(tiny_config, "coarse", layer_wise=True)


@pytest.fixture
def synthetic_clock(monkeypatch):
    """Latencies by a known polynomial of the sizes of the active subnet."""

    def measure(model, **settings):
        return Latency(TRUE(Shape.from_config(model.config)), 0.0, 0.0)

    monkeypatch.setattr(hf_whittle.cost.timing, "measure_latency", measure)


def shapes(space, number):
    rng = Random(0)
    return [space.sample(rng, ParameterBin(0, 1e18)).shape for _ in range(number)]


def test_polynomial_behind_exact_costs_is_found(space, tiny_config):
    drawn = shapes(space, 60)
    fitted = fit_polynomial(latency_polynomial(tiny_config), drawn[:40], [TRUE(shape) for shape in drawn[:40]])
    for shape in drawn[40:]:
        assert fitted(shape) == pytest.approx(TRUE(shape), rel=1e-6)


def test_no_coefficient_is_negative_whatever_the_costs(space, tiny_config):
    drawn, rng = shapes(space, 40), Random(1)
    costs = [rng.uniform(1, 2) / shape.hidden_size for shape in drawn]
    fitted = fit_polynomial(latency_polynomial(tiny_config), drawn, costs)
    assert min(fitted.terms.values()) >= 0


def test_fitted_model_predicts_subnets_it_has_not_seen(supernet, space, draw, synthetic_clock):
    model = LatencyModel.fit(supernet, space, progress=False, seed=3)
    assert model.error < 1e-6
    for seed in range(5):
        subnet = draw(space, 100 + seed)
        assert model(subnet) == pytest.approx(TRUE(subnet.shape), rel=1e-6)


def test_every_draw_lies_in_a_bin_of_seconds(supernet, space, synthetic_clock):
    model = LatencyModel.fit(supernet, space, progress=False)
    bin = LatencyBin(
        0.45 * TRUE(SubnetConfig.full(supernet.config)), 0.5 * TRUE(SubnetConfig.full(supernet.config)), model
    )
    rng = Random(0)
    subnets = [space.sample(rng, bin) for _ in range(30)]
    for subnet in subnets + [space.mutate(subnet, rng, bin) for subnet in subnets]:
        assert bin.contains(supernet.config, subnet)
        assert bin.low <= TRUE(subnet.shape) * (1 + 1e-6)
        assert TRUE(subnet.shape) * (1 - 1e-6) <= bin.high


def test_model_of_another_super_network_is_an_error(supernet, make_stock, space, synthetic_clock):
    bin = LatencyBin(0, 1, LatencyModel.fit(supernet, space, progress=False))
    other = SearchSpace.from_config(make_stock(hidden_size=64).config)
    with pytest.raises(SubnetError, match="fitted to a super-network of other sizes"):
        other.sample(Random(0), bin)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_percentiles_stand_around_the_median(supernet, uneven_subnet, phase):
    with supernet.active_subnet(uneven_subnet):
        latency = measure_latency(supernet, phase=phase, **QUICK)
    assert 0 < latency.low <= latency.median <= latency.high


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_larger_model_takes_longer(make_stock, phase):
    small = make_stock(num_hidden_layers=1)
    large = make_stock(num_hidden_layers=12)
    seconds = [measure_latency(model, phase=phase, **QUICK).median for model in (small, large)]
    assert seconds[1] > 2 * seconds[0]


def test_decoding_reads_one_token_and_a_cache_that_does_not_grow(stock):
    seen = []

    def note(module, args, inputs):
        if inputs.get("past_key_values") is not None:
            seen.append((inputs["input_ids"].shape[1], inputs["past_key_values"].get_seq_length()))

    model = copy.deepcopy(stock)
    with model.register_forward_pre_hook(note, with_kwargs=True):
        measure_latency(model, phase="decode", **QUICK)
    assert seen == [(1, 16)] * 6


def test_modes_of_all_modules_are_restored(stock):
    model = copy.deepcopy(stock).train()
    model.gpt_neox.layers[1].eval()
    before = [module.training for module in model.modules()]
    measure_latency(model, **QUICK)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phase": "training"}, "phase must be 'prefill' or 'decode', got 'training'"),
        ({"repeats": 0}, "and repeats must be at least 1, warmup at least 0, got 1, 16, 0 and 1"),
        ({"batch_size": 0}, "batch_size, sequence_length and repeats must be at least 1, warmup at least 0, got 0"),
        ({"warmup": -1}, "warmup at least 0, got 1, 16, 5 and -1"),
    ],
)
def test_impossible_measurement_is_an_error(stock, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        measure_latency(stock, **{**QUICK, **settings})


def test_too_few_subnets_to_fit_are_an_error(supernet, space):
    with pytest.raises(ValueError, match="subnets must be at least 16, twice the coefficients to fit, got 8"):
        LatencyModel.fit(supernet, space, subnets=8, progress=False)


@pytest.mark.slow
def test_device_dtype_and_setting_are_kept_with_the_model(supernet, space):
    model = LatencyModel.fit(supernet, space, subnets=16, repeats=1, sequence_length=8, phase="decode", progress=False)
    assert (model.dtype, model.batch_size, model.sequence_length, model.phase) == ("float32", 1, 8, "decode")
    assert model.device == device_name(torch.device("cpu"))
    assert model.error >= 0


def test_saved_model_is_the_same_bin(supernet, space, synthetic_clock, tmp_path):
    model = LatencyModel.fit(supernet, space, progress=False)
    model.save(tmp_path / "latency.json")
    loaded = LatencyModel.load(tmp_path / "latency.json")
    assert loaded == model
    assert LatencyBin(0, 1, loaded).to_dict() == LatencyBin(0, 1, model).to_dict()


@pytest.mark.parametrize("polynomial", [{"constant": 1.0, "head": 2e-6}, None, {"terms": {"rows": 1.0}, "shared": {}}])
def test_saved_model_of_an_older_version_is_an_error_that_says_to_fit_again(polynomial, tmp_path):
    (tmp_path / "latency.json").write_text(json.dumps({"polynomial": polynomial, "error": 0.1}))
    with pytest.raises(CheckpointError, match="holds no latency model, or one of an older version of hf_whittle"):
        LatencyModel.load(tmp_path / "latency.json")


@pytest.mark.slow
def test_latency_of_grouped_queries_is_fitted_by_their_terms(make_stock, make_supernet, monkeypatch):
    def measure(model, **settings):
        shape = Shape.from_config(model.config)
        width, neurons = shape.head_dim * sum(shape.num_key_value_heads), sum(shape.intermediate_size)
        attention = 1e-6 * width + 3e-8 * width * shape.num_key_value_groups * shape.hidden_size
        return Latency(1e-3 + 2e-4 * shape.num_hidden_layers + attention + 1e-7 * neurons, 0.0, 0.0)

    monkeypatch.setattr(hf_whittle.cost.timing, "measure_latency", measure)
    supernet = make_supernet(make_stock(model_type="llama"))
    sizes = {"num_key_value_groups": range(1, 3), "head_dim": range(2, 9, 2)}
    varied = SearchSpace.from_config(supernet.config, "coarse", layer_wise=True, **sizes)
    assert LatencyModel.fit(supernet, varied, subnets=60, progress=False).error < 1e-6
    whole = SearchSpace.from_config(supernet.config, "coarse", layer_wise=True)
    model = LatencyModel.fit(supernet, whole, progress=False)
    assert model.error < 1e-6
    subnet = whole.sample(Random(1), LatencyBin(1.6e-3, 1.8e-3, model))
    assert 1.6e-3 <= model(subnet) <= 1.8e-3
    with pytest.raises(ValueError, match="subnets must be at least 20, twice the coefficients to fit, got 19"):
        LatencyModel.fit(supernet, whole, subnets=19, progress=False)


def test_bin_without_an_upper_end_holds_every_subnet(supernet, space, synthetic_clock):
    model = LatencyModel.fit(supernet, space, progress=False)
    rng = Random(0)
    subnets = [space.sample(rng, LatencyBin(0, float("inf"), model)) for _ in range(50)]
    assert len({subnet.shape.num_hidden_layers for subnet in subnets}) == supernet.config.num_hidden_layers


def test_stock_model_has_no_subnets_to_time(stock, space):
    with pytest.raises(SubnetError, match="a GPTNeoXForCausalLM has no subnets to time; load it as a super-network"):
        LatencyModel.fit(stock, space)
