"""A real pretrained model through every stage: slices, extraction, search, healing, distillation, card.

The folder of its checkpoint is named by `HF_WHITTLE_REAL_MODEL`; without it, these tests are skipped.
"""

import math
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    EvolutionConfig,
    HealingConfig,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    save_student,
    search_subnets,
)
from hf_whittle.cost import num_parameters
from hf_whittle.evaluation import cross_entropy

SPACES = {
    "coarse uniform": {"granularity": "coarse", "layer_wise": False},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "stock": {"stock_only": True},
}


def share_of(config, low, high):
    """A bin around shares of a model's parameters."""
    whole = num_parameters(config)
    return ParameterBin(low * whole, high * whole)


def thinner(config):
    """Three quarters of the neurons of every layer, and the first key-value heads but one in every third."""
    layers = config.num_hidden_layers
    heads = [max(1, config.num_key_value_heads - (layer % 3 == 1)) for layer in range(layers)]
    return SubnetConfig(
        config.hidden_size, layers, num_key_value_heads=heads, intermediate_size=config.intermediate_size * 3 // 4
    )


@torch.no_grad()
def logits(model, input_ids):
    return model(input_ids=input_ids.to(model.device)).logits.float().cpu()


def test_full_slice_is_the_stock_model(checkpoint, supernet, blocks):
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(supernet.device).eval()
    expected = logits(stock, blocks[:2])
    with supernet.active_subnet(SubnetConfig.full(supernet.config)):
        torch.testing.assert_close(logits(supernet, blocks[:2]), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", SPACES)
def test_subnet_is_its_student(supernet, blocks, kind):
    space = SearchSpace.from_config(supernet.config, **SPACES[kind])
    subnet = space.sample(Random(0), share_of(supernet.config, 0.5, 0.8))
    student = extract_subnet(supernet, subnet)
    with supernet.active_subnet(subnet):
        ours = logits(supernet, blocks[:2])
    torch.testing.assert_close(ours, logits(student, blocks[:2]), atol=1e-3, rtol=1e-3)
    assert sum(parameter.numel() for parameter in student.parameters()) == num_parameters(supernet.config, subnet)


def test_extraction_from_disk_is_that_from_memory(checkpoint, supernet, tmp_path):
    subnet = thinner(supernet.config)
    extract_subnet(checkpoint, subnet, tmp_path / "student", progress=False)
    from_disk = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    from_memory = extract_subnet(supernet, subnet).state_dict()
    assert from_disk.keys() == from_memory.keys()
    assert all(torch.equal(from_disk[name], tensor.cpu()) for name, tensor in from_memory.items())


def test_short_search(supernet, blocks, report):
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    bin = share_of(supernet.config, 0.7, 0.8)
    config = EvolutionConfig(generations=2, population_size=8, num_offspring=4, num_elites=4, seed=0)
    result = search_subnets(supernet, space, bin=bin, eval_dataset=blocks[:2], config=config, progress=False)
    report(evaluations=len(result.candidates))
    assert bin.contains(supernet.config, result.best)
    drawn = [candidate["fitness"] for candidate in result.candidates]
    assert min(drawn) < sorted(drawn)[len(drawn) // 2]


def test_healing(supernet, blocks, report):
    student = extract_subnet(
        supernet, thinner(supernet.config), heal=HealingConfig(), calibration_dataset=blocks[:10], progress=False
    )
    healing = student.healing
    report(perplexity_sliced=healing.perplexity_before, perplexity_healed=healing.perplexity_after)
    assert math.isfinite(healing.perplexity_before)
    assert not healing.is_healed or healing.perplexity_after < healing.perplexity_before


def test_ten_steps_of_distillation_and_the_card(supernet, tokenizer, blocks, tmp_path, report):
    subnet = thinner(supernet.config)
    student = extract_subnet(supernet, subnet)
    before = math.exp(cross_entropy(student, blocks[-4:], 4))
    args = DistillationConfig(
        output_dir=str(tmp_path / "training"), max_steps=10, per_device_train_batch_size=4, learning_rate=1e-4,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in blocks[:40]]
    trainer = DistillationTrainer(model=student, teacher_model=supernet, args=args, train_dataset=rows)
    trainer.train()
    after = math.exp(cross_entropy(student.eval(), blocks[-4:], 4))
    report(perplexity_before=round(before, 2), perplexity_after=round(after, 2))
    assert after < before
    save_student(student, tmp_path / "student", tokenizer=tokenizer)
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"{num_parameters(supernet.config, subnet):,}" in card or "parameters" in card
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(logits(again, blocks[:1]), logits(student.cpu(), blocks[:1]), atol=1e-3, rtol=1e-3)
