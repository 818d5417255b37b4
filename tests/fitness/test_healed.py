"""Healed perplexity: its students compared with least squares on activations of the super-network."""

import argparse
import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures_search import StopsAt
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle import HealingConfig, ParameterBin, SearchSpace, SubnetConfig, extract_subnet, search_subnets
from hf_whittle.errors import DataError, HealingError, SubnetError, VocabularyError, WhittleError
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.search.algorithms import AdditiveSearchConfig, MultiFidelityConfig
from hf_whittle.subnet import Shape

RIDGE = 1e-2


@pytest.fixture(scope="module")
def text(supernet, sample_text):
    """Calibration text sampled from the super-network, and other text of it."""
    return sample_text(supernet, 96).split([64, 32])


@pytest.fixture(scope="module")
def healed(supernet, text):
    calibration, other = text
    return HealedPerplexity(supernet, other, calibration, 64)


def perplexity_of(model, blocks):
    with torch.no_grad():
        return math.exp(model(blocks, labels=blocks, use_cache=False).loss.double())


@torch.no_grad()
def seen(model, input_ids):
    """Input and output of every module, `(tokens, features)`."""
    found = {}

    def keep(name):
        def hook(module, arguments, output):
            found[name] = tuple(part.flatten(0, 1).double() for part in (arguments[0], output))

        return hook

    kinds = ("layernorm", "layer_norm", "dense", "_h", "query_key_value")
    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name.endswith(kinds) or name.rpartition(".")[2].isdigit()
    ]
    model.gpt_neox(input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def with_one(x):
    return F.pad(x, (0, 1), value=1.0)


def ridge_least_squares(x, y, start):
    """Ridge regression by numpy's least squares, with the penalty as rows below the tokens."""
    squares = x.square().sum(0)
    penalty = (RIDGE * (squares + 1e-6 * squares.mean())).sqrt().diag()
    rows, targets = torch.cat([x, penalty]), torch.cat([y, penalty @ start.T])
    return torch.from_numpy(np.linalg.lstsq(rows.numpy(), targets.numpy(), rcond=None)[0].T)


def close(found, expected):
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-3, atol=2e-3)


# The student


@pytest.mark.parametrize("variant_supernet", [{}, {"attention_bias": False}], indirect=True)
def test_outputs_of_a_layer_are_least_squares_of_those_of_the_super_network(variant_supernet, sample_text):
    calibration = sample_text(variant_supernet, 60)
    subnet = SubnetConfig(32, [0, 1, 4], [4, [1, 3], 4], [64, 30, 64])
    student = HealedPerplexity(variant_supernet, calibration[:2], calibration, 16).student(subnet)
    found, layer, own = seen(variant_supernet, calibration), "gpt_neox.layers.1.", student.gpt_neox.layers[1]
    attention, mlp = (found[f"{layer}{name}"][0] for name in ("attention.dense", "mlp.dense_4h_to_h"))
    x = with_one(torch.cat([attention.view(-1, 4, 8)[:, [1, 3]].flatten(1), mlp[:, :30]], 1))
    y = found["gpt_neox.layers.3"][1] - found["gpt_neox.layers.1"][0]  # layers 2 and 3 are left out
    full = variant_supernet.gpt_neox.layers[1]
    biases = [part.bias for part in (full.attention.dense, full.mlp.dense_4h_to_h) if part.bias is not None]
    start = [full.attention.dense.weight.view(32, 4, 8)[:, [1, 3]].flatten(1), full.mlp.dense_4h_to_h.weight[:, :30]]
    start = torch.cat([*start, sum(biases)[:, None]], 1).detach().double()
    expected = ridge_least_squares(x, y, start)
    close(own.attention.dense.weight, expected[:, :16])
    close(own.mlp.dense_4h_to_h.weight, expected[:, 16:46])
    close(sum(p.bias for p in (own.attention.dense, own.mlp.dense_4h_to_h) if p.bias is not None), expected[:, 46])


def squared_error(x, y, weight):
    return (x @ weight.T - y).square().sum()


@pytest.mark.parametrize("attention_bias", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_outputs_of_attention_and_then_of_the_mlp_are_least_squares_in_a_sequential_super_network(
    make_stock, make_supernet, sample_text, attention_bias, first
):
    supernet = make_supernet(make_stock(use_parallel_residual=False, attention_bias=attention_bias))
    calibration = sample_text(supernet, 60)
    layers = [0, 1, 4] if first == 0 else [1, 4]
    subnet = SubnetConfig(32, layers, [4, [1, 3], 4][first:], [64, 30, 64][first:])
    student = HealedPerplexity(supernet, calibration[:2], calibration, 16).student(subnet)
    found, full, own = seen(supernet, calibration), supernet.gpt_neox.layers[1], student.gpt_neox.layers[1 - first]
    before, after = found["gpt_neox.layers.1"][0], found["gpt_neox.layers.3"][1]  # layers 2 and 3 are left out
    embedded = found["gpt_neox.layers.0"][0]
    heads, attention = found["gpt_neox.layers.1.attention.dense"]
    neurons = with_one(found["gpt_neox.layers.1.mlp.dense_4h_to_h"][0][:, :30])
    heads = heads.view(-1, 4, 8)[:, [1, 3]].flatten(1)
    heads = with_one(heads) if attention_bias else heads

    def matrix(linear, columns):
        parts = [linear.weight[:, columns], *([] if linear.bias is None else [linear.bias[:, None]])]
        return torch.cat(parts, 1).detach().double()

    if first == 1:  # attention and MLP together write the output of layer 0
        together = torch.cat([heads[:, :16], neurons], 1)
        share = ridge_least_squares(together, before - embedded, torch.zeros(32, 47, dtype=torch.float64))
        attention = attention + heads @ torch.cat([share[:, :16], share[:, 46:]], 1)[:, : heads.shape[1]].T
    start = matrix(full.attention.dense, [*range(8, 16), *range(24, 32)])
    expected = ridge_least_squares(heads, attention, start)
    healed = matrix(own.attention.dense, range(16))
    close(healed, expected)
    assert squared_error(heads, attention, healed) <= squared_error(heads, attention, start)

    left = after - (embedded if first == 1 else before) - heads @ healed.T
    start = matrix(full.mlp.dense_4h_to_h, range(30))
    healed = matrix(own.mlp.dense_4h_to_h, range(30))
    close(healed, ridge_least_squares(neurons, left, start))
    assert squared_error(neurons, left, healed) <= squared_error(neurons, left, start)


@pytest.mark.parametrize("size", [2, 12, 31])
def test_basis_inputs_and_head_are_principal_components_and_least_squares_in_them(supernet, text, healed, size):
    subnet = SubnetConfig(size, [0, 2, 4], 2, 20)
    student, found = healed.student(subnet), seen(supernet, text[0])

    norms = [f"gpt_neox.layers.{layer}.input_layernorm" for layer in (0, 2, 4)] + ["gpt_neox.final_layer_norm"]
    normals = [F.layer_norm(found[norm][0], (32,)) for norm in norms]
    _, energies, components = np.linalg.svd(torch.cat(normals).numpy(), full_matrices=False)
    embedding = supernet.gpt_neox.embed_in.weight.detach().double().numpy()
    down = torch.from_numpy(
        np.linalg.lstsq(embedding, student.gpt_neox.embed_in.weight.detach().numpy(), rcond=None)[0].T
    )
    first = torch.from_numpy(components[: size - 1])
    close(down.T @ down, first.T @ first)
    share = (energies[: size - 1] ** 2).sum() / (energies**2).sum()

    def least_squares(norm, normal):
        """Fit of the output of the super-network's norm to the student's normalized hidden states and 1."""
        reduced = normal @ down.T
        x = with_one(reduced / reduced.square().mean().sqrt())
        scale, shift = (part.detach().double() for part in (norm.weight, norm.bias))
        start = torch.cat([scale[:, None] * down.T * math.sqrt(32 * share / size), shift[:, None]], 1)
        return ridge_least_squares(x, normal * scale + shift, start)

    centering = torch.eye(size, dtype=torch.float64) - 1 / size
    expected = least_squares(supernet.gpt_neox.final_layer_norm, normals[-1])
    head, matrix = (model.lm_head.weight.detach().double() for model in (student, supernet))
    close(head @ centering, matrix @ expected[:, :-1] @ centering)
    constant = head @ student.gpt_neox.final_layer_norm.bias.detach().double()
    close(constant, matrix @ expected[:, -1])

    full, own = supernet.gpt_neox.layers[2], student.gpt_neox.layers[1]
    expected = least_squares(full.input_layernorm, normals[1])
    matrix, bias = (p.detach().double()[:48] for p in full.attention.query_key_value.parameters())
    close(own.attention.query_key_value.weight.detach().double() @ centering, matrix @ expected[:, :-1] @ centering)
    close(own.attention.query_key_value.bias, bias + matrix @ expected[:, -1])


def test_full_subnet_stays_what_it_is(variant_supernet, sample_text):
    calibration, other = sample_text(variant_supernet, 96).split([64, 32])
    student = HealedPerplexity(variant_supernet, other, calibration).student(SubnetConfig.full(variant_supernet.config))
    with torch.no_grad():
        torch.testing.assert_close(student(other).logits, variant_supernet(other).logits, rtol=0, atol=2e-3)


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def trained(request, make_supernet):
    """A small super-network trained for seconds on Python source, some of that source, and other source."""
    source = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()[:98_304]), dtype=torch.uint8).long() % 128
    blocks = source.view(-1, 32)[torch.randperm(3072, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        use_parallel_residual=request.param,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for batch in blocks[:2560].repeat(2, 1).split(32):
        model(batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return make_supernet(model.eval()), blocks[:512], blocks[2560:]


def test_full_trained_subnet_stays_what_it_is(trained):
    supernet, calibration, other = trained
    fitness = HealedPerplexity(supernet, other, calibration)
    student = fitness.student(SubnetConfig.full(supernet.config))
    with torch.no_grad():
        torch.testing.assert_close(student(other).logits, supernet(other).logits, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "subnet",
    [
        SubnetConfig(32, 4, 4, 40),
        SubnetConfig(32, 4, 2, 64),
        SubnetConfig(24, 4, 4, 64),
        SubnetConfig(32, [0, 1, 3], 4, 64),
        SubnetConfig(32, [1, 2, 3], 4, 64),
        SubnetConfig(28, [0, 1, 3], 3, 56),
        SubnetConfig(32, [0, 2, 3], [2, 3, 4], [20, 64, 30]),
    ],
    ids=["neurons", "heads", "channels", "layer", "first layer", "all", "uneven"],
)
def test_healed_subnets_of_trained_models_are_better(trained, subnet):
    supernet, calibration, other = trained
    assert HealedPerplexity(supernet, other, calibration)(subnet) < Perplexity(supernet, other)(subnet)


@pytest.mark.parametrize("seed", range(2))
def test_healed_perplexity_is_that_of_its_student_and_better(variant_supernet, sample_text, draw, seed):
    calibration, other = sample_text(variant_supernet, 96).split([64, 32])
    fitness, plain = HealedPerplexity(variant_supernet, other, calibration), Perplexity(variant_supernet, other)
    subnet = draw(SearchSpace.from_config(variant_supernet.config, "fine", layer_wise=bool(seed)), seed)
    student = fitness.student(subnet)
    assert fitness(subnet) == pytest.approx(perplexity_of(student, other), rel=1e-5)
    assert fitness(subnet) < plain(subnet)
    assert student.num_parameters() == extract_subnet(variant_supernet, subnet).num_parameters()
    assert type(student) is type(extract_subnet(variant_supernet, subnet))


def test_most_subnets_are_better_than_unhealed_and_nearly_what_healing_layer_by_layer_gives(
    supernet, text, healed, draw_within
):
    calibration, other = text
    plain, ratios = Perplexity(supernet, other), []
    for seed in range(16):
        subnet = draw_within(Shape.from_config(supernet.config), seed)
        ratios.append(healed(subnet) / plain(subnet))
        # Only one channel is too little, and the output of layers before the first kept one is absorbed in part only.
        if subnet.layers[0] == 0 and subnet.shape.hidden_size > 1:
            assert ratios[-1] < 1
    assert sum(ratio < 1 for ratio in ratios) >= 12
    assert np.median(ratios) < 0.5
    for layers in ([0, 2, 4], 5):
        subnet = SubnetConfig(16, layers, 2, 30)
        config = HealingConfig(batch_size=64)
        student = extract_subnet(supernet, subnet, heal=config, calibration_dataset=calibration, progress=False)
        assert perplexity_of(student, other) < healed(subnet) < plain(subnet)


def test_one_channel_is_no_error(healed):
    assert math.isfinite(healed(SubnetConfig(1, [0, 2], 1, 1)))


def test_share_is_that_of_the_blocks_of_perplexity(supernet, text, healed, uneven_subnet):
    rows = Perplexity(supernet, text[1]).rows(0.25)
    expected = perplexity_of(healed.student(uneven_subnet), text[1][rows])
    assert healed(uneven_subnet, 0.25) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [10])
def test_student_does_not_depend_on_the_batch_size(supernet, text, healed, uneven_subnet, batch_size):
    fitness = HealedPerplexity(supernet, text[1], text[0], batch_size)
    assert fitness(uneven_subnet) == pytest.approx(healed(uneven_subnet), rel=1e-3)


def test_super_network_in_half_precision_is_healed_in_single(supernet, text, healed, uneven_subnet):
    half = copy.deepcopy(supernet).to(torch.bfloat16)
    fitness = HealedPerplexity(half, text[1], text[0])
    assert fitness.student(uneven_subnet).dtype == torch.float32
    assert fitness(uneven_subnet) == pytest.approx(healed(uneven_subnet), rel=0.1)


def test_super_network_and_random_numbers_stay_and_no_memory_is_shared(make_stock, make_supernet, text, uneven_subnet):
    supernet = make_supernet(make_stock(hidden_dropout=0.5)).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    generator = torch.get_rng_state()
    fitness = HealedPerplexity(supernet, text[1], text[0])
    value, student = fitness(uneven_subnet), fitness.student(uneven_subnet)
    assert fitness(uneven_subnet) == value  # again, to the last bit
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in supernet.modules())
    assert not any(module._forward_hooks for module in supernet.modules())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    own, theirs = ({p.untyped_storage().data_ptr() for p in m.parameters()} for m in (student, supernet))
    assert not own & theirs


# Cost


def test_tokens_are_those_evaluated_on_and_preparation_those_gathered_on(healed):
    assert (healed.tokens(), healed.tokens(0.25)) == (32 * 16, 8 * 16)
    assert healed.preparation["tokens"] == 64 * 16


# FLOPs of readers with 12 of 32 channels, 3 layers, 2 heads of 8 channels, 20 neurons and a vocabulary of 99.
READING = 7 * (12**3 // 3 + 6 * 12**2 * 32 + 6 * 12 * 32**2 + 2 * 32**3) + 2 * 32 * 12 * (3 * (48 + 20) + 99)


def test_flops_are_those_of_perplexity_and_of_the_regressions(supernet, text, healed, uneven_subnet):
    plain = Perplexity(supernet, text[1])
    for share in (0.25, 1.0):
        assert healed.flops(uneven_subnet, share) - plain.flops(uneven_subnet, share) == healed.healing_flops(
            uneven_subnet
        )
    features, size, kept = 2 * 8 + 20 + 1, 32, 12
    writers = features**3 // 3 + 4 * features**2 * kept + 2 * features * size * kept
    assert healed.healing_flops(SubnetConfig(12, 3, 2, 20)) == 3 * writers + READING


def test_flops_of_a_sequential_super_network_are_those_of_two_groups_of_writers(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(use_parallel_residual=False))
    healed = HealedPerplexity(supernet, text[1], text[0])
    heads, neurons, size, kept, every = 2 * 8 + 1, 20 + 1, 32, 12, 4 * 8 + 1

    def fitted(features):
        return features**3 // 3 + 4 * features**2 * kept + 2 * features * size * kept

    writers = fitted(heads) + 2 * heads * size * every + fitted(neurons) + 2 * neurons * heads * kept
    assert healed.healing_flops(SubnetConfig(12, 3, 2, 20)) == 3 * writers + READING
    together = fitted(heads + neurons - 1)
    assert healed.healing_flops(SubnetConfig(12, [1, 2, 3], 2, 20)) == 3 * writers + READING + together


@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize("layers", [3, [1, 2, 4]])
def test_flops_of_healing_are_those_computed(make_stock, make_supernet, sample_text, is_parallel, layers):
    sizes = {"hidden_size": 64, "intermediate_size": 256}
    supernet = make_supernet(make_stock(use_parallel_residual=is_parallel, num_attention_heads=8, **sizes))
    ids = sample_text(supernet, 20)
    healed, subnet = HealedPerplexity(supernet, ids, ids), SubnetConfig(64, layers, 6, 200)
    with FlopCounterMode(display=False) as counter:
        healed.student(subnet)
    fits = 3 * ([249] if is_parallel else [49, 201]) + ([] if is_parallel or layers == 3 else [249])
    solved = sum(features**3 // 3 + 2 * features**2 * 64 for features in fits)  # the counter sees no solution
    solved += 7 * (65**3 // 3 + 2 * 65**2 * 64)
    assert healed.healing_flops(subnet) == pytest.approx(counter.get_total_flops() + solved, rel=0.15)


def test_preparation_counts_what_is_computed(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(attn_implementation="eager"))  # all that the counter sees
    with FlopCounterMode(display=False) as counter:
        fitness = HealedPerplexity(supernet, text[1], text[0])
    assert fitness.preparation["flops"] == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_settings_tell_the_calibration_text_and_the_ridge(supernet, text, healed):
    calibration, other = text
    settings = healed.settings
    assert HealedPerplexity(supernet, other, calibration.clone()).settings == settings
    assert (
        HealedPerplexity(supernet, other, calibration.flip(0)).settings["calibration_data"]
        != (settings["calibration_data"])
    )
    assert HealedPerplexity(supernet, other, calibration, ridge=0.1).settings == {**settings, "ridge": 0.1}
    assert {**Perplexity(supernet, other).settings, "name": "healed-perplexity"}.items() <= settings.items()


# In a search

FILES = ("candidates.jsonl", "search.json")
CONFIGS = {
    "multi-fidelity": MultiFidelityConfig(generations=1, shares=[0.25, 0.5, 1.0], sizes=[4, 2, 1], initial=1, seed=4),
    "additive": AdditiveSearchConfig(
        generations=0, head_options=1, neuron_options=1, channel_options=2, levels=4, answers=2, seed=4
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_search_is_resumed_to_the_same_bytes(supernet, text, tmp_path, config):
    space = SearchSpace.from_config(supernet.config, "fine", layer_wise=True)

    def search(folder, stop_at=None):
        fitness = HealedPerplexity(supernet, text[1][:8], text[0], 64)
        fitness = fitness if stop_at is None else StopsAt(fitness, stop_at)
        arguments = {"bin": ParameterBin(20_000, 22_000), "config": config, "fitness": fitness, "progress": False}
        return search_subnets(None, space, output_dir=folder, **arguments)

    found = search(tmp_path / "whole")
    assert found.best_evaluation.fitness == HealedPerplexity(supernet, text[1][:8], text[0], 64)(found.best)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "resumed", stop_at=6)
    assert (tmp_path / "resumed" / "candidates.jsonl").read_bytes().count(b"\n") == 6
    search(tmp_path / "resumed")
    for name in FILES:
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Errors


def test_sharded_super_network_is_an_error(supernet, text, monkeypatch):
    monkeypatch.setattr("hf_whittle.fitness.healed.is_sharded", lambda model: True)
    with pytest.raises(WhittleError, match="healed-perplexity needs the whole model in each process; use perplexity"):
        HealedPerplexity(supernet, *text)


@pytest.mark.parametrize("name", ["embed_in.weight", "layers.3.mlp.dense_4h_to_h.weight"])
def test_weights_that_contain_nan_are_an_error_that_names_the_layer(supernet, text, name):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.state_dict()[f"gpt_neox.{name}"][:, 3] = math.nan
    layer = 3 if "layers" in name else 0
    with pytest.raises(HealingError, match=f"of the super-network contain NaN or Inf after layer {layer}; use"):
        HealedPerplexity(broken, *text)


def test_moments_of_an_active_subnet_are_an_error(supernet, text):
    with (
        supernet.active_subnet(SubnetConfig(24, 3, 2, 40)),
        pytest.raises(SubnetError, match="a subnet is active: leave the active_subnet block first"),
    ):
        HealedPerplexity(supernet, *text)


def test_calibration_text_is_checked(supernet, text):
    with pytest.raises(VocabularyError, match="the text has token ids from 1 to 99, the model's vocabulary has 99"):
        HealedPerplexity(supernet, text[1], torch.tensor([[1, 99]]))
    with pytest.raises(DataError, match="there are no blocks of text"):
        HealedPerplexity(supernet, text[1], None)


def test_subnet_of_another_model_is_an_error(healed):
    with pytest.raises(ValueError, match="cannot keep 33 channels, the super-network has 32"):
        healed(SubnetConfig(33, 2, 2, 2))


def test_moments_that_do_not_fit_into_memory_are_an_error_before_they_are_gathered(supernet, text, monkeypatch):
    calibration, other = text
    fitness = HealedPerplexity(supernet, other, calibration)
    held = [value for kept in vars(fitness._moments).values() if isinstance(kept, dict) for value in kept.values()]
    numbers = sum(value.numel() for value in held)
    assert 0.7 < fitness._moments.bytes / (4 * numbers) < 1.3
    free = SimpleNamespace(available=fitness._moments.bytes - 1)
    monkeypatch.setattr("hf_whittle.healing.supernet_moments.psutil.virtual_memory", lambda: free)
    with pytest.raises(WhittleError, match=r"healed perplexity needs .* GB for moments .*; search by perplexity"):
        HealedPerplexity(supernet, other, calibration)
