"""Healed perplexity: its students compared with least squares on activations of the super-network."""

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures_search import StopsAt
from fixtures_slow import slow_but
from fixtures_trained import TRAINED, train
from small_models import OTHERS
from torch.utils.flop_counter import FlopCounterMode

from hf_whittle import HealingConfig, ParameterBin, SearchSpace, SubnetConfig, extract_subnet, search_subnets
from hf_whittle.architectures.dimensions import CHANNELS, HEAD_CHANNELS, HEADS, KEY_VALUE_HEADS, NEURONS, QUERIES
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.errors import DataError, HealingError, SubnetError, VocabularyError, WhittleError
from hf_whittle.fitness.code_fingerprint import fitness_settings
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.healing.moments_cost import peak_bytes
from hf_whittle.healing.parts import normalized, projections
from hf_whittle.search.algorithms import AdditiveSearchConfig, MultiFidelityConfig
from hf_whittle.subnet import Shape

RIDGE = 1e-2
IN_FILE = 2e-2
"""Tolerance where hidden states come from a file in bfloat16."""


@pytest.fixture(scope="module")
def text(supernet, sample_text):
    """Calibration text sampled from the super-network, and other text of it."""
    return sample_text(supernet, 96).split([64, 32])


@pytest.fixture(scope="module")
def healed(supernet, text):
    calibration, other = text
    return HealedPerplexity(supernet, other, calibration, 64)


@pytest.fixture(scope="module")
def fixed(supernet, text):
    """The same with the strength of the formulas below."""
    calibration, other = text
    return HealedPerplexity(supernet, other, calibration, 64, ridge=RIDGE)


@pytest.fixture(autouse=True)
def always_healed(request, monkeypatch):
    """Tests of formulas look at healed students, better than slices or not."""
    if "least_squares" in request.node.name:
        monkeypatch.setattr("hf_whittle.fitness.healed.cross_entropy", lambda *_: 0.0)


def perplexity_of(model, blocks):
    with torch.no_grad():
        return math.exp(model(blocks, labels=blocks, use_cache=False).loss.double())


@torch.no_grad()
def seen(model, input_ids):
    """Input and output of every module that reads and writes hidden states, `(tokens, features)`."""
    found = {}

    def keep(name):
        def hook(module, arguments, output):
            pair = (*arguments[:1], output[0] if isinstance(output, tuple) else output)
            if len(pair) == 2 and all(torch.is_tensor(part) and part.ndim == 3 for part in pair):
                found[name] = tuple(part.flatten(0, 1).double() for part in pair)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    model.base_model(input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def with_one(x):
    return F.pad(x, (0, 1), value=1.0)


def roots_of_weights(supernet, found):
    """Square roots of the weights of tokens: of the inverse of a root mean square, in the mean over all layers."""
    layers = [f"{get_architecture(supernet.config).layers}.{layer}" for layer in range(5)]
    states = [found[layers[0]][0], *(found[layer][1] for layer in layers)]
    return torch.stack([state.square().mean(1).sqrt() for state in states]).mean(0)[:, None] ** -0.5


def ridge_least_squares(x, y, start, roots=1.0):
    """Ridge regression by numpy's least squares, with the penalty as rows below the tokens."""
    x, y = roots * x, roots * y
    squares = x.square().sum(0)
    penalty = (RIDGE * (squares + 1e-6 * squares.mean())).sqrt().diag()
    rows, targets = torch.cat([x, penalty]), torch.cat([y, penalty @ start.T])
    return torch.from_numpy(np.linalg.lstsq(rows.numpy(), targets.numpy(), rcond=None)[0].T)


def close(found, expected, atol=2e-3):
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-3, atol=atol)


# The student


@pytest.mark.parametrize("variant_supernet", [{}, {"attention_bias": False}], indirect=True)
def test_outputs_of_a_layer_are_least_squares_of_those_of_the_super_network(variant_supernet, sample_text):
    calibration = sample_text(variant_supernet, 60)
    subnet = SubnetConfig(32, [0, 1, 3], [4, [1, 3], 4], [64, 30, 64])
    student = HealedPerplexity(variant_supernet, calibration[:2], calibration, 16, ridge=RIDGE).student(subnet)
    found, layer, own = seen(variant_supernet, calibration), "gpt_neox.layers.1.", student.gpt_neox.layers[1]
    attention, mlp = (found[f"{layer}{name}"][0] for name in ("attention.dense", "mlp.dense_4h_to_h"))
    x = with_one(torch.cat([attention.view(-1, 4, 8)[:, [1, 3]].flatten(1), mlp[:, :30]], 1))
    y = found["gpt_neox.layers.2"][1] - found["gpt_neox.layers.1"][0]  # layer 2 is left out
    full = variant_supernet.gpt_neox.layers[1]
    biases = [part.bias for part in (full.attention.dense, full.mlp.dense_4h_to_h) if part.bias is not None]
    start = [full.attention.dense.weight.view(32, 4, 8)[:, [1, 3]].flatten(1), full.mlp.dense_4h_to_h.weight[:, :30]]
    start = torch.cat([*start, sum(biases)[:, None]], 1).detach().double()
    expected = ridge_least_squares(x, y, start, roots_of_weights(variant_supernet, found))
    close(own.attention.dense.weight, expected[:, :16])
    close(own.mlp.dense_4h_to_h.weight, expected[:, 16:46])
    close(sum(p.bias for p in (own.attention.dense, own.mlp.dense_4h_to_h) if p.bias is not None), expected[:, 46])


@pytest.mark.slow
@pytest.mark.parametrize("reached", [1, 2])
def test_outputs_over_a_longer_gap_are_least_squares_of_predicted_hidden_states(supernet, text, reached):
    memory = (peak_bytes(supernet.config, 16, reached) + 1) / 1e9
    fitness = HealedPerplexity(supernet, text[1], text[0], 1, ridge=RIDGE, memory=memory)
    assert fitness.settings["max_gap"] == reached
    own = fitness.student(SubnetConfig(32, [0, 4], 4, [30, 64])).gpt_neox.layers[0]
    found, full = seen(supernet, text[0]), supernet.gpt_neox.layers[0]
    before, after = found[f"gpt_neox.layers.{reached}"][0], found["gpt_neox.layers.4"][0]
    states, roots = with_one(before), roots_of_weights(supernet, found)
    penalty = (33 / text[0].numel() * (roots * states).square().sum(0)).sqrt().diag()
    rows = torch.cat([roots * states, penalty])
    targets = torch.cat([roots * (after - before), torch.zeros(33, 32).double()])
    predicted = before + states @ torch.linalg.lstsq(rows, targets).solution
    heads, neurons = (found[f"gpt_neox.layers.0.{name}"][0] for name in ("attention.dense", "mlp.dense_4h_to_h"))
    x, parts = with_one(torch.cat([heads, neurons[:, :30]], 1)), (full.attention.dense, full.mlp.dense_4h_to_h)
    start = [parts[0].weight, parts[1].weight[:, :30], sum(part.bias for part in parts)[:, None]]
    start = torch.cat(start, 1).detach().double()
    expected = ridge_least_squares(x, predicted - found["gpt_neox.layers.0"][0], start, roots)
    close(own.attention.dense.weight, expected[:, :32], IN_FILE)
    close(own.mlp.dense_4h_to_h.weight, expected[:, 32:62], IN_FILE)


@pytest.mark.slow
def test_values_do_not_depend_on_which_predictions_are_kept(supernet, text):
    memory = (peak_bytes(supernet.config, 16, 1) + 1) / 1e9
    few, many = (HealedPerplexity(supernet, text[1][:8], text[0][:16], 1, memory=memory) for _ in range(2))
    few._moments._most_predictions, many._moments._most_predictions = 1, 9
    subnets = [SubnetConfig(32, layers, 4, 50) for layers in ([0, 3], [0, 4], [1, 4], [0, 3])]
    assert [few(subnet) for subnet in subnets] == [many(subnet) for subnet in subnets]
    assert len(few._moments._predictions) == 1 < len(many._moments._predictions)


def squared_error(x, y, weight, roots):
    return (roots * (x @ weight.T - y)).square().sum().item()


@pytest.mark.parametrize("attention_bias", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_outputs_of_attention_and_then_of_the_mlp_are_least_squares_in_a_sequential_super_network(
    make_stock, make_supernet, sample_text, attention_bias, first
):
    supernet = make_supernet(make_stock(use_parallel_residual=False, attention_bias=attention_bias))
    calibration = sample_text(supernet, 60)
    layers = [0, 1, 3] if first == 0 else [1, 3]
    subnet = SubnetConfig(32, layers, [4, [1, 3], 4][first:], [64, 30, 64][first:])
    student = HealedPerplexity(supernet, calibration[:2], calibration, 16, ridge=RIDGE).student(subnet)
    found, full, own = seen(supernet, calibration), supernet.gpt_neox.layers[1], student.gpt_neox.layers[1 - first]
    before, after = found["gpt_neox.layers.1"][0], found["gpt_neox.layers.2"][1]  # layer 2 is left out
    embedded = found["gpt_neox.layers.0"][0]
    heads, attention = found["gpt_neox.layers.1.attention.dense"]
    neurons = with_one(found["gpt_neox.layers.1.mlp.dense_4h_to_h"][0][:, :30])
    heads = heads.view(-1, 4, 8)[:, [1, 3]].flatten(1)
    heads = with_one(heads) if attention_bias else heads

    def matrix(linear, columns):
        parts = [linear.weight[:, columns], *([] if linear.bias is None else [linear.bias[:, None]])]
        return torch.cat(parts, 1).detach().double()

    roots = roots_of_weights(supernet, found)
    if first == 1:  # attention and MLP together write the output of layer 0
        together = torch.cat([heads[:, :16], neurons], 1)
        share = ridge_least_squares(together, before - embedded, torch.zeros(32, 47, dtype=torch.float64), roots)
        attention = attention + heads @ torch.cat([share[:, :16], share[:, 46:]], 1)[:, : heads.shape[1]].T
    start = matrix(full.attention.dense, [*range(8, 16), *range(24, 32)])
    expected = ridge_least_squares(heads, attention, start, roots)
    healed, tolerance = matrix(own.attention.dense, range(16)), 0.1 if first == 1 else 2e-3
    close(healed, expected, tolerance)
    assert squared_error(heads, attention, healed, roots) <= squared_error(heads, attention, start, roots)

    left = after - (embedded if first == 1 else before) - heads @ healed.T
    start = matrix(full.mlp.dense_4h_to_h, range(30))
    healed = matrix(own.mlp.dense_4h_to_h, range(30))
    expected = ridge_least_squares(neurons, left, start, roots)
    close(healed, expected, tolerance)
    of_healed, of_expected, of_start = (squared_error(neurons, left, w, roots) for w in (healed, expected, start))
    assert of_healed == pytest.approx(of_expected, rel=1e-3) and of_healed <= of_start


@pytest.mark.parametrize("size", [2, 12, 31])
def test_basis_inputs_and_head_are_principal_components_and_least_squares_in_them(supernet, text, fixed, size):
    subnet = SubnetConfig(size, [0, 2, 4], 2, 20)
    student, found = fixed.student(subnet), seen(supernet, text[0])

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


# Architectures with norms that do not subtract the mean, queries in groups and norms after attention and MLP

GROUPED = {
    "intermediate_size": [64, 30, 64], "num_key_value_heads": [2, [1], 2], "num_key_value_groups": [1],
    "head_dim": [0, 1, 4, 5, 6, 7],
}  # fmt: skip
ATTENDING = [8 * 3 + channel for channel in (0, 2, 3, 4, 6, 7)]
"""Channels that layer 1 keeps of 4 queries' heads: of the second query of the second key-value head, 3 rotary pairs."""


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
def test_outputs_of_grouped_queries_and_of_the_mlp_are_least_squares(
    make_stock, make_supernet, sample_text, model_type
):
    supernet = make_supernet(make_stock(model_type=model_type))
    calibration = sample_text(supernet, 60)
    subnet = SubnetConfig(32, [0, 1, 3], **GROUPED)
    student = HealedPerplexity(supernet, calibration[:2], calibration, 16, ridge=RIDGE).student(subnet)
    found, full, own = seen(supernet, calibration), supernet.model.layers[1], student.model.layers[1]
    (heads, attention), (neurons, mlp) = (found[f"model.layers.1.{n}"] for n in ("self_attn.o_proj", "mlp.down_proj"))
    heads, neurons = heads[:, ATTENDING], neurons[:, :30]
    start = full.self_attn.o_proj.weight.detach().double()[:, ATTENDING]
    roots = roots_of_weights(supernet, found)
    expected = ridge_least_squares(heads, attention, start, roots)
    close(own.self_attn.o_proj.weight, expected)
    if model_type != "gemma3_text":  # layer 2 is left out
        mlp = found["model.layers.2"][1] - found["model.layers.1"][0] - heads @ expected.T
    start = full.mlp.down_proj.weight.detach().double()[:, :30]
    close(own.mlp.down_proj.weight, ridge_least_squares(neurons, mlp, start, roots))


@pytest.mark.parametrize("variant", ["llama", "llama tied", "qwen2", "gemma3 untied", "cohere", "cohere untied"])
def test_inputs_and_head_are_least_squares_of_normalized_hidden_states(make_stock, make_supernet, sample_text, variant):
    stock = make_stock(**OTHERS[variant])
    if stock.config.tie_word_embeddings:  # then the basis is that of an untied head
        stock.model.norm.weight.data.fill_(1.5)
    supernet = make_supernet(stock)
    calibration, size = sample_text(supernet, 60), 12
    subnet = SubnetConfig.full(supernet.config).with_layers([0, 2, 4]).replaced({CHANNELS: size})
    student = HealedPerplexity(supernet, calibration[:2], calibration, 16, ridge=RIDGE).student(subnet)
    found, offset = seen(supernet, calibration), float("gemma" in variant)
    is_centered = "cohere" in variant
    norms = [f"model.layers.{layer}.input_layernorm" for layer in (0, 2, 4)] + ["model.norm"]
    normals = [normalized(found[norm][0], supernet.config) for norm in norms]
    is_principal = variant in ("llama", "llama tied", "qwen2", "cohere untied")
    if is_principal:
        _, energies, components = np.linalg.svd(torch.cat(normals).numpy(), full_matrices=False)
        pair = [model.model.embed_tokens.weight.detach().double().numpy() for model in (supernet, student)]
        down = torch.from_numpy(np.linalg.lstsq(*pair, rcond=None)[0].T)
        kept = size - is_centered
        first = torch.from_numpy(components[:kept])
        close(down.T @ down, first.T @ first)
        share = (energies[:kept] ** 2).sum() / (energies**2).sum()
    else:
        down = torch.eye(32, dtype=torch.float64)[:size]

    def least_squares(norm, own, normal, has_constant=False):
        """Fit of the output of the super-network's norm to the student's normalized hidden states."""
        scale, own_scale = (offset + part.weight.detach().double() for part in (norm, own))
        reduced = normal @ down.T
        reduced -= is_centered * reduced.mean(1, keepdim=True)
        x = own_scale * reduced / reduced.square().mean().sqrt()
        start = scale[:, None] * down.T * math.sqrt(32 * share / size) if is_principal else down.T
        if has_constant:
            x, start = with_one(x), with_one(start) - F.pad(torch.zeros_like(start), (0, 1), value=1.0)
        return ridge_least_squares(x, normal * scale, start)

    full, own = supernet.model.layers[2], student.model.layers[1]
    names = [f"self_attn.{name}_proj" for name in "qkv"] + ["mlp.up_proj"] * is_centered
    for name in names:
        of_full, of_own = (layer.get_submodule(name) for layer in (full, own))
        has_bias = of_full.bias is not None
        expected = least_squares(full.input_layernorm, own.input_layernorm, normals[1], has_bias)
        matrix = of_full.weight.detach().double()
        close(of_own.weight, matrix @ expected[:, :size])
        if has_bias:
            close(of_own.bias, of_full.bias.detach() + matrix @ expected[:, -1])
    if not supernet.config.tie_word_embeddings:
        expected = least_squares(supernet.model.norm, student.model.norm, normals[-1])
        close(student.lm_head.weight, supernet.lm_head.weight.detach().double() @ expected)


def test_full_subnet_stays_what_it_is(any_supernet, sample_text):
    calibration, other = sample_text(any_supernet, 48).split([32, 16])
    student = HealedPerplexity(any_supernet, other, calibration).student(SubnetConfig.full(any_supernet.config))
    with torch.no_grad():
        torch.testing.assert_close(student(other).logits, any_supernet(other).logits, rtol=1e-3, atol=5e-3)


@pytest.fixture(scope="module", params=slow_but(list(TRAINED), "parallel", "sequential", "llama", "gemma3"))
def trained(request, make_supernet):
    """A small super-network trained for seconds on Python source, some of that source, and other source."""
    stock, calibration, other = train(request.param)
    return make_supernet(stock), calibration, other


@pytest.mark.slow
def test_full_trained_subnet_stays_what_it_is(trained):
    supernet, calibration, other = trained
    fitness = HealedPerplexity(supernet, other, calibration)
    student = fitness.student(SubnetConfig.full(supernet.config))
    with torch.no_grad():
        torch.testing.assert_close(student(other).logits, supernet(other).logits, rtol=0, atol=1e-2)


@pytest.mark.slow
def test_healing_regains_what_slices_of_trained_models_lose(trained):
    supernet, calibration, other = trained
    fitness, plain = HealedPerplexity(supernet, other, calibration), Perplexity(supernet, other)
    full = SubnetConfig.full(supernet.config)
    heads = HEADS if HEADS in full.dimensions else KEY_VALUE_HEADS
    half = full.shape.size(heads) // 2
    subnets = {
        "neurons": full.replaced({NEURONS: 20}),
        "heads": full.replaced({heads: half}),
        "channels": full.replaced({CHANNELS: 24}),
        "all": full.with_layers([0, 1, 3]).replaced({CHANNELS: 28, NEURONS: 56, heads: half}),
        "uneven": full.with_layers([0, 2, 3]).replaced({heads: [half, 2 * half, [half]], NEURONS: [20, 64, 30]}),
    }
    if heads is KEY_VALUE_HEADS:
        subnets["queries"] = full.replaced({QUERIES: [1]})
        subnets["head channels"] = full.replaced({HEAD_CHANNELS: [0, 1, 4, 5, 6, 7]})
    else:
        subnets["first layer"] = full.with_layers([1, 2, 3])
    subnets["layer"] = full.with_layers([0, 1, 3])
    if any(group.is_normalized for group in projections(supernet.config)):  # nothing absorbs layers left out
        subnets = {name: subnet for name, subnet in subnets.items() if subnet.num_hidden_layers == 4}
    whole = math.log(plain(full))
    lost = {name: math.log(plain(subnet)) - whole for name, subnet in subnets.items()}
    still_lost = {name: math.log(fitness(subnet)) - whole for name, subnet in subnets.items()}
    assert [name for name in subnets if still_lost[name] > lost[name] + 0.01] == []
    assert sum(still_lost.values()) < 0.8 * sum(lost.values())


@pytest.mark.slow
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


@pytest.mark.slow
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


def of_basis(features):
    """FLOPs of a change of basis to 12 of 32 channels, where writers of all layers have so many inputs."""
    return 9 * 32**3 + 2 * 32 * 12 * (99 + features)


def test_flops_are_those_of_perplexity_and_of_the_regressions(supernet, text, healed, uneven_subnet):
    plain = Perplexity(supernet, text[1])
    for share in (0.25, 1.0):
        assert healed.flops(uneven_subnet, share) - plain.flops(uneven_subnet, share) == healed.healing_flops(
            uneven_subnet
        )
    features, size, kept = 2 * 8 + 20 + 1, 32, 12
    writers = features**3 // 3 + 4 * features**2 * kept + 2 * features * size * kept
    subnet, own = SubnetConfig(12, [0, 2, 3], 2, 20), 2 * features * size * (4 * 8 + 64 + 1)  # gaps of 2, 1 and 2
    rest = READING + of_basis(3 * features) + 2 * plain.flops(subnet, 1 / 16)
    assert healed.healing_flops(subnet) == 3 * writers + own + rest
    subnet, predicted = SubnetConfig(12, [0, 3, 4], 2, 20), 2 * features * 32 * 33  # gaps of 3, 1 and 1
    assert healed.healing_flops(subnet) == 3 * writers + 2 * own + predicted + rest


def test_flops_of_a_sequential_super_network_are_those_of_two_groups_of_writers(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(use_parallel_residual=False))
    healed = HealedPerplexity(supernet, text[1], text[0])
    heads, neurons, size, kept, every = 2 * 8 + 1, 20 + 1, 32, 12, 4 * 8 + 1

    def fitted(features):
        return features**3 // 3 + 4 * features**2 * kept + 2 * features * size * kept

    writers = fitted(heads) + 2 * heads * size * every + fitted(neurons) + 2 * neurons * heads * kept
    subnet = SubnetConfig(12, [0, 2, 3], 2, 20)
    own = 2 * neurons * size * (every + 64 + 1)
    judged = 2 * Perplexity(supernet, text[1]).flops(subnet, 1 / 16)
    assert healed.healing_flops(subnet) == 3 * writers + own + READING + of_basis(3 * (heads + neurons)) + judged


@pytest.mark.slow
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
    solved += (1 if layers == 3 else 3) * (65**3 // 3 + 2 * 65**2 * 64)
    assert healed.healing_flops(subnet) == pytest.approx(counter.get_total_flops() + solved, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_healing_in_another_basis_are_not_below_those_computed(make_stock, make_supernet, sample_text, tied):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "vocab_size": 5000}
    stock = make_stock(model_type="llama", tie_word_embeddings=tied, attn_implementation="eager", **sizes)
    stock.model.norm.weight.data.fill_(1.5)
    supernet = make_supernet(stock)
    ids = sample_text(supernet, 20)
    healed, subnet = HealedPerplexity(supernet, ids, ids), SubnetConfig.full(supernet.config).replaced({CHANNELS: 40})
    with FlopCounterMode(display=False) as counter:
        healed.student(subnet)
    solved = 11 * (40**3 // 3 + 2 * 40**2 * 64)  # by readers; the counter sees no solution
    counted = counter.get_total_flops() + solved
    assert counted <= healed.healing_flops(subnet) <= 1.3 * counted


def test_preparation_counts_what_is_computed(make_stock, make_supernet, text):
    supernet = make_supernet(make_stock(attn_implementation="eager"))  # all that the counter sees
    with FlopCounterMode(display=False) as counter:
        fitness = HealedPerplexity(supernet, text[1], text[0])
        every = torch.arange(3)
        for layer, last in ((0, 3), (0, 4), (0, 5), (1, 4), (1, 5), (2, 5)):  # longer than 2
            fitness._moments.change(layer, last, every)
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


def test_student_that_is_worse_than_the_slice_stays_a_slice(supernet, text):
    subnet = SubnetConfig(32, [0, 2, 4], 2, 20)
    student = HealedPerplexity(supernet, text[1], text[0][:1], ridge=1e-6).student(subnet)
    for name, weight in extract_subnet(supernet, subnet).state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "of_slice", "is_healed"),
    [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, math.nan, True), (math.nan, 1.0, False), (math.inf, math.inf, False)],
)
def test_better_of_student_and_slice_is_kept(healed, monkeypatch, loss, of_slice, is_healed):
    losses = iter([loss, of_slice])
    monkeypatch.setattr("hf_whittle.fitness.healed.cross_entropy", lambda *_: next(losses))
    subnet = SubnetConfig(32, [0, 2, 4], 2, 20)
    student, sliced = healed.student(subnet), extract_subnet(healed.supernet, subnet)
    assert all(map(torch.equal, student.parameters(), sliced.parameters())) != is_healed


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fitness: pickle.loads(pickle.dumps(fitness))])
def test_copy_gives_the_same_values(make_supernet, stock, text, uneven_subnet, copied):
    """Of a super-network that has shown no hidden states, whose hooks in transformers cannot be pickled."""
    healed = HealedPerplexity(make_supernet(stock), text[1][:8], text[0][:16])
    again = copied(healed)
    assert again.settings == healed.settings and again(uneven_subnet) == healed(uneven_subnet)


def test_function_that_calls_it_is_identified(supernet, text, uneven_subnet):
    def settings(calibration):
        healed = HealedPerplexity(supernet, text[1][:8], calibration)
        doubled = lambda subnet: 2 * healed(subnet)  # noqa: E731
        before = fitness_settings(doubled)
        doubled(uneven_subnet)
        assert fitness_settings(doubled) == before and before["code"] is not None
        return before

    assert settings(text[0][:8]) == settings(text[0][:8]) != settings(text[0][8:16])


# In a search

FILES = ("candidates.jsonl", "search.json")
CONFIGS = {
    "multi-fidelity": MultiFidelityConfig(generations=1, shares=[0.25, 0.5, 1.0], sizes=[4, 2, 1], initial=1, seed=4),
    "additive": AdditiveSearchConfig(
        generations=0, head_options=1, neuron_options=1, channel_options=2, levels=4, answers=2, seed=4
    ),
}


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["ridge", "memory"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_ridge_and_memory_are_positive_numbers(supernet, text, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got {value}"):
        HealedPerplexity(supernet, text[1], text[0], **{name: value})


def test_subnet_of_another_model_is_an_error(healed):
    with pytest.raises(ValueError, match="cannot keep 33 channels, the super-network has 32"):
        healed(SubnetConfig(33, 2, 2, 2))


def test_moments_that_do_not_fit_into_memory_are_an_error_before_they_are_gathered(supernet, text, monkeypatch):
    calibration, other = text
    fitness = HealedPerplexity(supernet, other, calibration)
    moments = fitness._moments
    held = [value for kept in vars(moments).values() if isinstance(kept, dict) for value in kept.values()]
    held = {id(sums): sums for sums in held}.values()  # some are of several norms
    numbers = sum(value.numel() for sums in held for value in getattr(sums, "tensors", [sums]))
    assert moments.bytes == 4 * numbers
    free = SimpleNamespace(available=peak_bytes(supernet.config, 16, 1))
    monkeypatch.setattr("hf_whittle.healing.supernet_moments.psutil.virtual_memory", lambda: free)
    with pytest.raises(WhittleError, match=r"healed perplexity needs .* GB for moments .*; search by perplexity"):
        HealedPerplexity(supernet, other, calibration, 1)
