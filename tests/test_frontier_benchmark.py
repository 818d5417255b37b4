"""The frontier of healing and distillation, on a tiny model."""

import pytest
from benchmarks.frontier import From, frontiers, start_of
from benchmarks.ranking.real import REAL
from benchmarks.ranking.settings import Material

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import CHANNELS
from hf_whittle.cost import flops_per_token


@pytest.fixture
def material(make_stock, make_supernet, sample_text):
    supernet = make_supernet(make_stock(model_type="llama", tie_word_embeddings=True))
    supernet.model.norm.weight.data.fill_(1.0)
    text = sample_text(supernet, 32)
    return Material(supernet, text[:8], text[8:24], text[:0], text[:0], text[24:], "")


@pytest.mark.slow
def test_costs_are_those_of_healing_of_the_teacher_and_of_training(material):
    config, length = material.supernet.full_config, material.train.shape[1]
    subnet = SubnetConfig.full(config).replaced({CHANNELS: 24})
    assert start_of(material, subnet, None).facts["flops"] == 0
    start = start_of(material, subnet, 8 * length)
    assert start.facts["flops"] > 0 and start.facts["basis"] == "principal"
    training = From.of(material, budget := 2 * REAL.batch_size * length, 1e-3)
    training.start = start
    training(subnet)
    cost = training.cost(subnet)
    once = [flops_per_token(config, each, sequence_length=length) for each in (None, subnet)]
    assert cost["flops"] == start.facts["flops"] + budget * (once[0] + 3 * once[1])
    assert cost["seconds"] >= round(start.facts["seconds"] + training.seconds, 1)


def test_frontier_has_the_points_that_nothing_cheaper_beats():
    costs = {(0, 0): 9.0, (2, 1): 5.0, (3, 3): 6.0, (4, 2): 4.0, (5, 5): 4.0}
    points = [
        {"group": "g", "start": "s", "tokens": 0, "seconds": seconds, "flops": flops, "perplexity": perplexity}
        for (seconds, flops), perplexity in costs.items()
    ]
    found = frontiers(points)["g"]
    assert [line.split(": ")[1] for line in found["seconds"]] == [
        "9.00, 0 seconds",
        "5.00, 2 seconds",
        "4.00, 4 seconds",
    ]
    assert [line.split(": ")[1] for line in found["flops"]] == ["9.00, 0 flops", "5.00, 1 flops", "4.00, 2 flops"]
