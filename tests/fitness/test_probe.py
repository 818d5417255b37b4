"""A probe against a training loop written by hand with the plain loss."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.errors import DataError, VocabularyError, WhittleError
from hf_whittle.fitness import probe as probe_module
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.fitness.probe import Probe, ProbeConfig
from hf_whittle.fitness.staged import StagedFitness
from hf_whittle.loss.divergences import LossWeights, naive_distillation_loss

SUBNET = SubnetConfig(20, [0, 2, 4], 2, 40)
SHORT = ProbeConfig(steps=4, batch_size=6)


@pytest.fixture(scope="module")
def text(supernet, sample_text):
    """Text to train on and other text, of the super-network's own."""
    return sample_text(supernet, 40).split([24, 16])


def perplexity_of(model, blocks):
    with torch.no_grad():
        return math.exp(model.eval()(blocks, labels=blocks, use_cache=False).loss.double())


def learning_rate(config, step, steps):
    """A rise in the first tenth of the steps and half a cosine."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train_by_hand(student, teacher, blocks, config, steps):
    """AdamW as its formula reads, on the plain loss."""
    weights, (first, second), epsilon = LossWeights(config.alpha, config.beta, config.temperature), (0.9, 0.95), 1e-8
    parameters = list(student.parameters())
    means, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    student.train()
    for step in range(steps):
        batch = blocks[step * config.batch_size : (step + 1) * config.batch_size]
        with torch.no_grad():
            of_teacher = teacher(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits, labels = student(batch, use_cache=False).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        loss = naive_distillation_loss(logits, of_teacher, labels, weights).total / len(labels)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        rate = learning_rate(config, step, steps)
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
                gradient = gradient * min(1.0, 1 / (norm + 1e-6))
                parameter.mul_(1 - rate * (config.weight_decay if parameter.ndim > 1 else 0))
                mean.mul_(first).add_((1 - first) * gradient)
                square.mul_(second).add_((1 - second) * gradient**2)
                mean_hat, square_hat = mean / (1 - first ** (step + 1)), square / (1 - second ** (step + 1))
                parameter.sub_(rate * mean_hat / (square_hat.sqrt() + epsilon))
    return student.eval()


@pytest.fixture
def trained(monkeypatch):
    """The students that probes trained, as they were evaluated."""
    students, evaluate = [], probe_module.cross_entropy

    def kept(student, *arguments):
        students.append(student)
        return evaluate(student, *arguments)

    monkeypatch.setattr(probe_module, "cross_entropy", kept)
    return students


def assert_trained(student, expected, value, blocks):
    for name, parameter in expected.state_dict().items():
        if not name.endswith("query_key_value.bias"):  # keys' have no gradient but rounding, which Adam makes a step of
            torch.testing.assert_close(student.state_dict()[name], parameter, rtol=1e-3, atol=2e-5, msg=name)
    assert value == pytest.approx(perplexity_of(expected, blocks), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 4])
def test_probe_is_a_training_loop_by_hand(supernet, text, uneven_subnet, trained, steps):
    blocks, other = text
    config = ProbeConfig(steps=steps, batch_size=6, warmup=0.5)
    probe = Probe(supernet, blocks, other, config)
    for subnet in (SUBNET, uneven_subnet):
        value = probe(subnet)
        expected = train_by_hand(extract_subnet(supernet, subnet), supernet, blocks, config, steps)
        assert_trained(trained.pop(), expected, value, other)
        assert value < Perplexity(supernet, other)(subnet)


def test_settings_are_those_of_the_loop(supernet, text, trained):
    blocks, other = text
    changes = {"learning_rate": 1e-2, "warmup": 0.0, "weight_decay": 2.0, "alpha": 1.0, "beta": 0.5, "temperature": 2.0}
    config = ProbeConfig(steps=2, batch_size=3, **changes)
    probe = Probe(supernet, blocks, other, config)
    value = probe(SUBNET)
    expected = train_by_hand(extract_subnet(supernet, SUBNET), supernet, blocks, config, 2)
    assert_trained(trained[0], expected, value, other)


def test_teacher_may_be_another_with_its_own_hidden_size(supernet, make_stock, text, trained):
    blocks, other = text
    teacher = make_stock(seed=1, hidden_size=16, num_hidden_layers=2).train()
    probe = Probe(supernet, blocks, other, SHORT, teacher=teacher)
    assert teacher.training
    expected = train_by_hand(extract_subnet(supernet, SUBNET), teacher.eval(), blocks, SHORT, 4)
    value = probe(SUBNET)
    assert_trained(trained[0], expected, value, other)
    assert value != pytest.approx(Probe(supernet, blocks, other, SHORT)(SUBNET), rel=1e-3)


def test_teacher_in_half_precision(supernet, text):
    blocks, other = text
    half = copy.deepcopy(supernet).to(torch.bfloat16)
    expected = Probe(supernet, blocks, other, SHORT)(SUBNET)
    assert Probe(supernet, blocks, other, SHORT, teacher=half)(SUBNET) == pytest.approx(expected, rel=0.02)
    assert Probe(half, blocks, other, SHORT)(SUBNET) == pytest.approx(expected, rel=0.05)


def test_without_divergence_no_teacher_is_asked(supernet, make_stock, text, trained):
    blocks, other = text
    teacher = make_stock(seed=1)
    teacher.forward = teacher.gpt_neox.forward = None  # it cannot be called
    config = ProbeConfig(steps=2, batch_size=6, alpha=1.0, beta=0.0)
    probe = Probe(supernet, blocks, other, config, teacher=teacher)
    value = probe(SUBNET)
    expected = train_by_hand(extract_subnet(supernet, SUBNET), supernet, blocks, config, 2)
    assert_trained(trained[0], expected, value, other)


@pytest.mark.parametrize(
    "variant_supernet", [{"tie_word_embeddings": True}, {"use_parallel_residual": False}], indirect=True
)
def test_other_kinds_of_models_are_trained(variant_supernet, text, trained):
    blocks, other = text
    probe = Probe(variant_supernet, blocks, other, SHORT)
    value = probe(SUBNET)
    student = extract_subnet(variant_supernet, SUBNET)
    assert_trained(trained[0], train_by_hand(student, variant_supernet, blocks, SHORT, 4), value, other)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_logits_that_the_architecture_scales_are_scaled(make_stock, make_supernet, text, trained, beta):
    blocks, other = text
    supernet, teacher = (make_supernet(make_stock(seed, model_type="cohere")) for seed in (0, 1))
    config = ProbeConfig(steps=4, batch_size=6, alpha=0.5, beta=beta)
    subnet = SubnetConfig(20, [0, 2, 4], num_key_value_heads=1, intermediate_size=40)
    value = Probe(supernet, blocks, other, config, teacher=teacher)(subnet)
    expected = train_by_hand(extract_subnet(supernet, subnet), teacher, blocks, config, 4)
    assert_trained(trained[0], expected, value, other)


def test_capped_logits_of_the_super_network_are_an_error(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(model_type="gemma3_text", final_logit_softcapping=3.0))
    with pytest.raises(WhittleError, match=r"Gemma3SuperNetForCausalLM are not .*; use another fitness"):
        Probe(supernet, *text, SHORT)


@pytest.mark.slow
def test_share_is_that_of_the_steps(supernet, text, trained):
    blocks, other = text
    probe = Probe(supernet, blocks, other, ProbeConfig(steps=4, batch_size=6))
    for share, steps in ((1e-6, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        config = ProbeConfig(steps=steps, batch_size=6)
        assert probe(SUBNET, share) == Probe(supernet, blocks, other, config)(SUBNET)
        assert probe.tokens(share) == steps * 6 * 16 + 16 * 16


@pytest.mark.slow
def test_probe_starts_from_healed_weights(supernet, text, trained):
    blocks, other = text
    healing = HealedPerplexity(supernet, other, blocks)
    probe = Probe(supernet, blocks, other, SHORT, healing=healing)
    value = probe(SUBNET)
    expected = train_by_hand(healing.student(SUBNET), supernet, blocks, SHORT, 4)
    assert_trained(trained[0], expected, value, other)
    still = Probe(supernet, blocks, other, ProbeConfig(steps=1, batch_size=6, learning_rate=1e-12), healing=healing)
    assert still(SUBNET) == pytest.approx(healing(SUBNET), rel=1e-5)
    assert value < Probe(supernet, blocks, other, SHORT)(SUBNET)


@pytest.mark.slow
@pytest.mark.parametrize("healed", [False, True])
def test_same_subnet_gives_the_same_value_and_the_super_network_stays(make_stock, make_supernet, text, healed):
    blocks, other = text
    supernet = make_supernet(make_stock(hidden_dropout=0.3, attention_dropout=0.3)).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    generator = torch.get_rng_state()
    healing = HealedPerplexity(supernet, other, blocks) if healed else None
    probe = Probe(supernet, blocks, other, SHORT, healing=healing)
    with torch.no_grad():  # as a search may run
        value = probe(SUBNET)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.rand(3)
    probe(SubnetConfig(12, 2, 2, 20))
    assert probe(SUBNET) == value == Probe(supernet, blocks, other, SHORT, healing=healing)(SUBNET)
    other_seed = ProbeConfig(steps=4, batch_size=6, seed=1)
    assert Probe(supernet, blocks, other, other_seed, healing=healing)(SUBNET) != value  # of dropout
    assert all(module.training for module in supernet.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in supernet.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


# Cost


def test_flops_are_those_of_training_and_evaluating_the_student(supernet, text, uneven_subnet):
    blocks, other = text
    healing = HealedPerplexity(supernet, other, blocks)
    student = extract_subnet(supernet, uneven_subnet)
    student.set_attn_implementation("eager")  # all that the counter sees
    counts = []
    for ids in (blocks, other):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            student(ids, use_cache=False)
        counts.append(counter.get_total_flops())
    probe = Probe(supernet, blocks, other, SHORT)
    assert probe.flops(uneven_subnet) == 3 * counts[0] + counts[1]
    assert probe.flops(uneven_subnet, 0.5) == 3 * counts[0] // 2 + counts[1]
    healed = Probe(supernet, blocks, other, SHORT, healing=healing)
    assert healed.flops(uneven_subnet) == probe.flops(uneven_subnet) + healing.healing_flops(uneven_subnet)


def test_preparation_is_the_teachers_forward_pass_and_that_of_healing(supernet, make_stock, text):
    blocks, other = text
    teacher = make_stock(seed=1, hidden_size=16, num_hidden_layers=2, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(blocks, use_cache=False)
    probe = Probe(supernet, blocks, other, SHORT, teacher=teacher)
    assert probe.preparation == {"tokens": 24 * 16, "flops": counter.get_total_flops()}
    healing = HealedPerplexity(supernet, other, blocks[:8])
    both = Probe(supernet, blocks, other, SHORT, teacher=teacher, healing=healing).preparation
    assert both == {name: probe.preparation[name] + healing.preparation[name] for name in ("tokens", "flops")}
    alone = ProbeConfig(steps=4, batch_size=6, beta=0)
    assert Probe(supernet, blocks, other, alone).preparation == {"tokens": 0, "flops": 0}
    assert Probe(supernet, blocks, other, alone, healing=healing).preparation == healing.preparation
    staged = StagedFitness({0.5: healing, 1.0: Probe(supernet, blocks, other, SHORT, teacher=teacher, healing=healing)})
    assert staged.preparation == both  # the healing that the probe starts from is the stage's own


def test_settings_tell_what_changes_the_value(supernet, make_stock, make_supernet, text):
    blocks, other = text
    healing = HealedPerplexity(supernet, other, blocks)

    def settings(model=supernet, train=blocks, config=SHORT, **arguments):
        return Probe(model, train, other, config, **arguments).settings

    assert settings() == settings(copy.deepcopy(supernet), torch.cat([blocks, other]))  # more than it reads
    different = [
        settings(),
        settings(train=blocks.flip(0)),
        settings(config=ProbeConfig(steps=4, batch_size=6, seed=1)),
        settings(config=ProbeConfig(steps=4, batch_size=6, beta=0)),
        settings(make_supernet(make_stock(seed=1))),
        settings(teacher=make_stock(seed=1)),
        settings(healing=healing),
    ]
    assert all(one != other for index, one in enumerate(different) for other in different[:index])


# Errors


def test_too_little_text_is_an_error(supernet, text):
    blocks, other = text
    message = "4 steps of 6 blocks need 24 blocks of text to train on, got 23; give more text, or fewer steps"
    with pytest.raises(DataError, match=message):
        Probe(supernet, blocks[:23], other, SHORT)


def test_text_of_another_vocabulary_is_an_error(supernet, text):
    blocks, other = text
    for train, held_out in ((blocks + 99, other), (blocks, other + 99)):
        with pytest.raises(VocabularyError, match="the model's vocabulary has 99 entries"):
            Probe(supernet, train, held_out, SHORT)


def test_sharded_super_network_is_an_error(supernet, text, monkeypatch):
    monkeypatch.setattr(probe_module, "is_sharded", lambda model: True)
    with pytest.raises(WhittleError, match="needs the whole super-network in each process; use perplexity"):
        Probe(supernet, *text, SHORT)


def test_teacher_whose_logits_are_not_a_product_is_an_error(supernet, make_stock, text):
    class Scaled(nn.Linear):
        def forward(self, states):
            return super().forward(states).tanh()

    teacher = make_stock(seed=1)
    teacher.lm_head.__class__ = Scaled
    message = "the logits of a GPTNeoXForCausalLM are not a product with an output matrix, which a probe needs; use"
    with pytest.raises(WhittleError, match=message):
        Probe(supernet, *text, SHORT, teacher=teacher)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"temperature": math.inf}, "temperature must be a positive number, got inf"),
        ({"warmup": -0.1}, "warmup must be a number of at least 0, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be a number of at least 0, got nan"),
        ({"alpha": -1}, "alpha must be a number of at least 0, got -1"),
        ({"beta": math.inf}, "beta must be a number of at least 0, got inf"),
    ],
)
def test_settings_out_of_range_are_an_error(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ProbeConfig(**values)
