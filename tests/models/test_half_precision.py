"""Super-networks in bfloat16: searched, scored, healed and extracted from nearly as those in float32."""

import pytest
import torch
from fixtures_trained import train

from hf_whittle import (
    AutoSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    Perplexity,
    Probe,
    ProbeConfig,
    SubnetConfig,
    extract_subnet,
    score_importance,
)
from hf_whittle.evaluation import cross_entropy

SUBNETS = {
    "parallel": SubnetConfig([*range(20), 25, 31], [0, 2, 3], [[1, 3], 4, [2]], [40, [*range(3, 50, 2)], 64]),
    "llama tied": SubnetConfig(32, [0, 1, 3], num_key_value_heads=[[1], 2, 1], intermediate_size=[40, 64, 20]),
}


@pytest.fixture(scope="module", params=["parallel", pytest.param("llama tied", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """Folder of a trained model, a subnet, calibration text and held-out text."""
    model, text, held_out = train(request.param)
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return folder, SUBNETS[request.param], text[:64], held_out[:32]


@pytest.fixture(scope="module")
def pair(trained):
    """The super-network in bfloat16 and in float32."""
    return [AutoSuperNetForCausalLM.from_pretrained(trained[0], dtype=dtype) for dtype in ("bfloat16", "float32")]


FITNESSES = {
    "perplexity": lambda model, text, held_out: Perplexity(model, held_out),
    "healed perplexity": lambda model, text, held_out: HealedPerplexity(model, held_out, text),
    "probe": lambda model, text, held_out: Probe(model, text, held_out, ProbeConfig(steps=4, batch_size=4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", FITNESSES.values(), ids=FITNESSES)
def test_fitness_is_near_that_in_single_precision(trained, pair, make):
    found, expected = (make(model, *trained[2:])(trained[1]) for model in pair)
    assert found == pytest.approx(expected, rel=0.02)


def test_divergence_is_near_that_in_single_precision(trained, pair):
    found, expected = (KLDivergence(model, trained[3])(trained[1]) for model in pair)
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("criterion", ["activation", "magnitude", "taylor"])
def test_importance_is_near_that_in_single_precision(trained, pair, criterion):
    scores = [score_importance(model, trained[2], criterion=criterion, progress=False) for model in pair]
    for name, expected in scores[1].entries.items():
        found = scores[0].entries[name]
        for one, other in zip(
            *((each,) if not isinstance(each, tuple) else each for each in (found, expected)), strict=True
        ):
            assert ((one - other) ** 2).sum() <= 0.2**2 * (other**2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["memory", "files"])
def test_healing_is_near_that_in_single_precision(trained, pair, source):
    folder, subnet, text, held_out = trained
    models = pair if source == "memory" else [folder, pair[1]]
    options = {"heal": True, "calibration_dataset": text, "progress": False}
    students = [extract_subnet(model, subnet, **options) for model in models]
    assert students[0].dtype == (torch.bfloat16 if source == "memory" else torch.float32)
    losses = [cross_entropy(student.float(), held_out) for student in students]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(student.healing.is_healed for student in students)
