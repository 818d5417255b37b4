"""Fitnesses, importance and searches on the device against those on the CPU."""

import dataclasses

import pytest
import torch
from fixtures_search import StopsAt, assert_same_search

from hf_whittle import (
    AdditiveSearchConfig,
    EvolutionConfig,
    HealedPerplexity,
    KLDivergence,
    ParameterBin,
    Perplexity,
    Probe,
    ProbeConfig,
    SearchSpace,
    score_importance,
    search_subnets,
    sort_by_importance,
)

from .comparing import DEVICE, DTYPES, SUBNETS, assert_near, on_device
from .inner import CRITERIA, LAYER_CRITERIA

pytestmark = pytest.mark.gpu
SHORT = ProbeConfig(steps=4, batch_size=8)
FITNESSES = {
    "perplexity": lambda model, calibration, text: Perplexity(model, text),
    "kl": lambda model, calibration, text: KLDivergence(model, text),
    "healed-perplexity": lambda model, calibration, text: HealedPerplexity(model, text, calibration),
    "probe": lambda model, calibration, text: Probe(model, calibration, text, SHORT),
    "probe of healed": lambda model, calibration, text: Probe(
        model, calibration, text, SHORT, healing=HealedPerplexity(model, text, calibration)
    ),
}
TOLERANCE = {
    "perplexity": {"float32": 1e-5, "bfloat16": 0.1},
    "kl": {"float32": 1e-3, "bfloat16": 0.2},  # the teacher's log-probabilities are rounded to half precision
    "healed-perplexity": {"float32": 2e-3, "bfloat16": 0.1},
    "probe": {"float32": 2e-3, "bfloat16": 0.1},
    "probe of healed": {"float32": 5e-3, "bfloat16": 0.1},
}
BIN = ParameterBin(20_000, 22_000)
EVOLUTION = EvolutionConfig(seed=3, generations=2, population_size=6, num_offspring=4, num_elites=2)
SEARCHES = {
    "evolution": EVOLUTION,
    "additive": AdditiveSearchConfig(
        seed=3, generations=1, sizes=(4, 2, 1), head_options=1, neuron_options=1, channel_options=2, levels=4, answers=3
    ),
}


@pytest.fixture(scope="module")
def of_the_cpu(supernet, text):
    """A function that gives a subnet's fitness on the CPU in single precision, computed once."""
    made, values = {}, {}

    def value(name, which):
        if name not in made:
            made[name] = FITNESSES[name](supernet, *text)
        if (name, which) not in values:
            values[name, which] = made[name](SUBNETS[which])
        return values[name, which]

    return value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FITNESSES)
def test_fitness_is_that_of_the_cpu(supernet, text, of_the_cpu, name, dtype):
    fitness = FITNESSES[name](on_device(supernet, DTYPES[dtype]), *text)
    for which in ("coarse", "fine"):
        assert fitness(SUBNETS[which]) == pytest.approx(of_the_cpu(name, which), rel=TOLERANCE[name][dtype])


def test_healed_student_lies_on_the_device(supernet, text):
    student = HealedPerplexity(on_device(supernet), text[1], text[0]).student(SUBNETS["coarse"])
    assert {parameter.device for parameter in student.parameters()} == {DEVICE}


def arrays_of(scores):
    """Every array of scores."""
    yield scores.layers
    for entries in scores.entries.values():
        yield from entries if isinstance(entries, tuple) else (entries,)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("layer_criterion", LAYER_CRITERIA)
def test_importance_is_that_of_the_cpu(supernet, text, criterion, layer_criterion):
    settings = {"criterion": criterion, "layer_criterion": layer_criterion, "progress": False}
    found, expected = (score_importance(model, text[1], **settings) for model in (on_device(supernet), supernet))
    for ours, theirs in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert_near(torch.from_numpy(ours), torch.from_numpy(theirs), 1e-3)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_importance_in_bfloat16_is_near(supernet, text, criterion):
    found, expected = (
        score_importance(model, text[1], criterion=criterion, progress=False)
        for model in (on_device(supernet, torch.bfloat16), supernet)
    )
    assert_near(*(torch.from_numpy(scores.entries["hidden_size"]) for scores in (found, expected)), 0.2)


def test_sorting_keeps_the_function_and_the_order_of_the_cpu(supernet, text, input_ids):
    models = on_device(supernet), on_device(supernet).cpu()
    scores = score_importance(supernet, text[1], progress=False)
    scores = dataclasses.replace(scores, settings={})  # those of a model elsewhere
    with torch.no_grad():
        before = models[0](input_ids.to(DEVICE)).logits
        orders = [sort_by_importance(model, scores) for model in models]
        after = models[0](input_ids.to(DEVICE)).logits
    assert orders[0] == orders[1]
    assert_near(after, before, 2e-5)
    weights = [model.state_dict() for model in models]
    assert all(torch.equal(weights[0][name].cpu(), weights[1][name]) for name in weights[1])


def search(model, blocks, config, folder=None, fitness=None, granularity="coarse"):
    space = SearchSpace.from_config(model.full_config, granularity, layer_wise=True)
    return search_subnets(
        model, space, bin=BIN, eval_dataset=blocks, config=config, fitness=fitness, output_dir=folder, progress=False
    )


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_search_is_that_of_the_cpu(supernet, text, granularity):
    models = on_device(supernet), supernet
    assert_same_search(*(search(model, text[1], EVOLUTION, granularity=granularity) for model in models))


@pytest.mark.parametrize("name", SEARCHES)
def test_search_resumed_makes_the_evaluations_of_one_never_stopped(supernet, text, name, tmp_path):
    model = on_device(supernet, torch.bfloat16)
    whole = search(model, text[1], SEARCHES[name], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        search(model, None, SEARCHES[name], tmp_path / "stopped", StopsAt(Perplexity(model, text[1]), 5))
    resumed = search(model, None, SEARCHES[name], tmp_path / "stopped", Perplexity(model, text[1]))
    assert len(whole.evaluations) > 8
    assert_same_search(resumed, whole)


def test_search_by_healed_perplexity_ends_in_the_bin(supernet, text):
    model = on_device(supernet)
    result = search(model, None, EVOLUTION, fitness=HealedPerplexity(model, text[1], text[0]))
    student = HealedPerplexity(model, text[1], text[0]).student(result.best)
    assert 20_000 <= sum(parameter.numel() for parameter in student.parameters()) <= 22_000
    assert min(one.fitness for one in result.evaluations) == pytest.approx(
        HealedPerplexity(model, text[1], text[0])(result.best), rel=1e-3
    )
