"""Proxies of a subnet against formulas worked out on its student."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_whittle import ImportanceScores, ParameterBin, SubnetConfig, extract_subnet, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.experimental.proxies import (
    GradientNorm,
    JacobianCovariance,
    RetainedImportance,
    Snip,
    Synflow,
    WeightMagnitude,
)
from hf_whittle.search.algorithms import RandomSearchConfig
from hf_whittle.subnet import Shape

WIDTH = 8  # channels of a head
FULL = SubnetConfig(32, 5, 4, 64)


def magnitude(student, input_ids):
    weights = [tensor for name, tensor in student.state_dict().items() if name.endswith(".weight")]
    return -sum(tensor.double().abs().sum().item() for tensor in weights)


def gradients(student, input_ids):
    """Every parameter with its gradient of the mean loss."""
    student.requires_grad_(True)
    student(input_ids, labels=input_ids).loss.backward()
    return [(parameter.detach().double(), parameter.grad.double()) for parameter in student.parameters()]


def gradient_norm(student, input_ids):
    return -torch.cat([gradient.flatten() for _, gradient in gradients(student, input_ids)]).norm().item()


def snip(student, input_ids):
    return -sum((weight * gradient).abs().sum().item() for weight, gradient in gradients(student, input_ids))


def jacobian_covariance(student, input_ids):
    embed = student.get_input_embeddings()

    def total(embeddings):
        return student(inputs_embeds=embeddings).logits.sum()

    rows = [torch.autograd.functional.jacobian(total, embed(block[None]).detach()).flatten() for block in input_ids]
    values = np.linalg.eigvalsh(np.corrcoef(torch.stack(rows).double().numpy())) + 1e-5
    return float(np.sum(np.log(values) + 1 / values))


def positive(student):
    """The absolute weights, in double precision."""
    return {name: tensor.double().abs().requires_grad_() for name, tensor in student.state_dict().items()}


def output_of_ones(weights, student):
    """The sum of the logits of absolute weights without norms, for a token whose embedding is all ones."""

    def linear(name, states, rows=slice(None)):
        bias = weights.get(f"{name}.bias", torch.zeros(()).double())
        return weights[f"{name}.weight"][rows] @ states + (bias[rows] if bias.ndim else bias)

    states = torch.ones(student.config.hidden_size, dtype=torch.float64)
    for layer in range(student.config.num_hidden_layers):
        name = f"gpt_neox.layers.{layer}."
        heads = len(weights[name + "attention.query_key_value.weight"]) // (3 * WIDTH)
        values = torch.arange(3 * WIDTH * heads).view(heads, 3, WIDTH)[:, 2].flatten()
        attended = linear(name + "attention.dense", linear(name + "attention.query_key_value", states, values))
        read = states if student.config.use_parallel_residual else states + attended
        hidden = linear(name + "mlp.dense_h_to_4h", read)
        hidden = {"gelu": F.gelu, "relu": F.relu}[student.config.hidden_act](hidden)
        states = states + attended + linear(name + "mlp.dense_4h_to_h", hidden)
    return linear("lm_head", states).sum()


def synflow(student, input_ids):
    weights = positive(student)
    output_of_ones(weights, student).backward()
    found = [weight for weight in weights.values() if weight.grad is not None]
    return -math.log(sum((weight.detach() * weight.grad).sum().item() for weight in found))


ON_TEXT = {"gradient norm": GradientNorm, "snip": Snip, "jacobian covariance": JacobianCovariance}
ORACLES = {
    "magnitude": magnitude,
    "gradient norm": gradient_norm,
    "snip": snip,
    "synflow": synflow,
    "jacobian covariance": jacobian_covariance,
}
each_proxy = pytest.mark.parametrize("name", ORACLES)


def make(name, supernet, input_ids, **options):
    if name in ON_TEXT:
        return ON_TEXT[name](supernet, input_ids, **options)
    return {"magnitude": WeightMagnitude, "synflow": Synflow}[name](supernet)


@pytest.mark.slow_after(9)
@each_proxy
@pytest.mark.parametrize("seed", range(2))
def test_proxy_of_a_subnet_is_that_of_its_student(supernet, space, draw, input_ids, name, seed):
    subnet = draw(space, seed)
    expected = ORACLES[name](extract_subnet(supernet, subnet), input_ids)
    assert make(name, supernet, input_ids)(subnet) == pytest.approx(expected, rel=1e-4)


@each_proxy
def test_proxy_is_that_of_the_student_for_every_kind_of_super_network(variant_supernet, uneven_subnet, input_ids, name):
    expected = ORACLES[name](extract_subnet(variant_supernet, uneven_subnet), input_ids)
    assert make(name, variant_supernet, input_ids)(uneven_subnet) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow_after(9)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [name for name in ORACLES if name != "synflow"])
def test_proxy_is_that_of_the_student_for_every_architecture(each_supernet, draw_within, input_ids, name, seed):
    subnet = draw_within(each_supernet.config, seed)
    expected = ORACLES[name](extract_subnet(each_supernet, subnet), input_ids)
    assert make(name, each_supernet, input_ids)(subnet) == pytest.approx(expected, rel=1e-3)


@each_proxy
def test_proxy_of_the_full_subnet_is_that_of_the_stock_model(supernet, stock, input_ids, name):
    expected = ORACLES[name](copy.deepcopy(stock), input_ids)
    assert make(name, supernet, input_ids)(FULL) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ON_TEXT)
def test_proxy_on_a_share_is_that_of_its_blocks(supernet, uneven_subnet, name):
    blocks = torch.randint(1, 99, (6, 12), generator=torch.Generator().manual_seed(8))
    proxy = make(name, supernet, blocks, batch_size=2)
    expected = ORACLES[name](extract_subnet(supernet, uneven_subnet), blocks[proxy.rows(0.5)])
    assert proxy(uneven_subnet, 0.5) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ON_TEXT)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_proxy_does_not_depend_on_the_batch_size(supernet, uneven_subnet, input_ids, name, batch_size):
    expected = make(name, supernet, input_ids)(uneven_subnet)
    found = make(name, supernet, input_ids, batch_size=batch_size)(uneven_subnet)
    assert found == pytest.approx(expected, rel=1e-4)


# Importance


SCORES = ImportanceScores(
    np.array([4.0, 1.0, -3.0]),
    {
        "hidden_size": np.array([6.0, 2.0, 1.0, 1.0]),
        "num_attention_heads": (np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([0.0, 5.0])),
        "intermediate_size": (np.array([1.0, 2.0, 5.0]), np.array([4.0, 4.0, 2.0]), np.array([1.0, 1.0, 2.0])),
        "head_dim": np.array([3.0, 3.0, 1.0, 1.0]),
    },
)


@pytest.mark.parametrize(
    ("subnet", "channels", "layers", "heads", "neurons"),
    [
        (SubnetConfig(4, 3, 2, 3), 1, 1, 1, 1),
        (SubnetConfig(2, 2, 1, 2), 8 / 10, 1, (1 / 4 + 2 / 4) / 3, (3 / 8 + 8 / 10) / 3),
        (SubnetConfig([1, 3], [0, 2], [[1], [1]], [[0, 2], 2]), 3 / 10, 4 / 5, (3 / 4 + 1) / 3, (6 / 8 + 2 / 4) / 3),
        (SubnetConfig(1, [2], 1, 1), 6 / 10, 0, 0, (1 / 4) / 3),
    ],
    ids=["full", "first entries", "any entries", "worthless layer"],
)
def test_importance_is_the_mean_share_that_is_retained(subnet, channels, layers, heads, neurons):
    expected = -(channels + layers + heads + neurons) / 4
    assert RetainedImportance(SCORES)(subnet) == pytest.approx(expected, rel=1e-6)


def test_importance_retained_in_a_dimension_that_need_not_be_named_counts_where_it_is():
    subnet = SubnetConfig(2, 2, 1, 2, head_dim=[0, 1])
    parts = (8 / 10, 1, (1 / 4 + 2 / 4) / 3, (3 / 8 + 8 / 10) / 3, 6 / 8)
    assert RetainedImportance(SCORES)(subnet) == pytest.approx(-sum(parts) / 5, rel=1e-6)


def test_importance_of_a_model_in_which_nothing_matters_is_none():
    of_layers = {"num_attention_heads": (np.zeros(2),) * 3, "intermediate_size": (np.zeros(3),) * 3}
    nothing = ImportanceScores(np.zeros(3), {"hidden_size": np.zeros(4), **of_layers})
    assert RetainedImportance(nothing)(SubnetConfig(2, 2, 1, 2)) == 0


# Synaptic flow


def test_synflow_without_biases_counts_the_weights_on_every_path(make_stock, make_supernet):
    supernet = make_supernet(make_stock(num_hidden_layers=1, hidden_act="relu", attention_bias=False))
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    weights = {name: tensor.double().abs() for name, tensor in supernet.state_dict().items()}
    layer, out, ones = "gpt_neox.layers.0.", weights["lm_head.weight"], torch.ones(32).double()
    values = weights[layer + "attention.query_key_value.weight"].view(4, 3, WIDTH, 32)[:, 2].flatten(0, 1)
    attention = (out @ weights[layer + "attention.dense.weight"] @ values @ ones).sum()
    mlp = (out @ weights[layer + "mlp.dense_4h_to_h.weight"] @ weights[layer + "mlp.dense_h_to_4h.weight"] @ ones).sum()
    flow = (out @ ones).sum() + 3 * attention + 3 * mlp
    assert Synflow(supernet)(SubnetConfig(32, 1, 4, 64)) == pytest.approx(-math.log(flow), rel=1e-9)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_synflow_of_grouped_queries_and_gates_is_that_of_absolute_weights(
    make_stock, make_supernet, draw_within, model_type
):
    act = {"hidden_activation" if model_type == "gemma3_text" else "hidden_act": "relu"}
    supernet = make_supernet(make_stock(model_type=model_type, **act))
    subnet = draw_within(supernet.config, 3)
    weights = positive(extract_subnet(supernet, subnet))
    sizes = subnet.shape.filled(Shape.from_config(supernet.config))
    states = torch.ones(sizes.hidden_size, dtype=torch.float64)
    for layer, heads in enumerate(sizes.num_key_value_heads):
        name = f"model.layers.{layer}."
        values = (weights[name + "self_attn.v_proj.weight"] @ states).view(heads, 1, sizes.head_dim)
        values = values.expand(-1, sizes.num_key_value_groups, -1).flatten()
        states = states + weights[name + "self_attn.o_proj.weight"] @ values
        gate, up = (weights[f"{name}mlp.{matrix}_proj.weight"] @ states for matrix in ("gate", "up"))
        states = states + weights[name + "mlp.down_proj.weight"] @ (gate * up)
    (weights["lm_head.weight"] @ states).sum().backward()
    flow = sum((weight.detach() * weight.grad).sum().item() for weight in weights.values() if weight.grad is not None)
    assert Synflow(supernet)(subnet) == pytest.approx(-math.log(flow), rel=1e-6)


def test_synflow_of_a_deep_model_is_finite_beyond_single_precision(make_stock, make_supernet):
    stock = make_stock(num_hidden_layers=30)
    single = {name: tensor.abs() for name, tensor in stock.state_dict().items()}
    assert output_of_ones({name: weight.double() for name, weight in single.items()}, stock).float() == math.inf
    value = Synflow(make_supernet(stock))(SubnetConfig(32, 30, 4, 64))
    assert math.isfinite(value) and -value > math.log(torch.finfo(torch.float32).max)


def test_synflow_does_not_depend_on_signs(supernet, uneven_subnet):
    negative = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in negative.parameters():
            parameter.neg_()
    assert Synflow(negative)(uneven_subnet) == Synflow(supernet)(uneven_subnet)


def test_synflow_that_is_cut_off_counts_as_worst(supernet):
    idle = copy.deepcopy(supernet)
    with torch.no_grad():
        idle.lm_head.weight.zero_()
    assert Synflow(idle)(FULL) == math.inf


# Covariance of Jacobians


def test_covariance_of_a_single_block_counts_as_worst(supernet, uneven_subnet, input_ids):
    assert JacobianCovariance(supernet, input_ids[:1])(uneven_subnet) == math.inf


def test_blocks_that_are_alike_have_a_worse_covariance_than_others(supernet, uneven_subnet, input_ids):
    alike = input_ids[[0, 0, 0]]
    values = torch.tensor([3.0, 0.0, 0.0]).double() + 1e-5  # all correlations are 1
    assert JacobianCovariance(supernet, alike)(uneven_subnet) == pytest.approx(
        (values.log() + 1 / values).sum().item(), rel=1e-4
    )
    assert JacobianCovariance(supernet, input_ids)(uneven_subnet) < JacobianCovariance(supernet, alike)(uneven_subnet)


# The super-network is left as it was


def state_of(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "needs gradient": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "weights": [tensor.tolist() for tensor in model.state_dict().values()],
        "dtypes": [tensor.dtype for tensor in model.state_dict().values()],
        "sizes": model.config.to_dict(),
    }


@each_proxy
@pytest.mark.parametrize("training", [True, False])
def test_super_network_is_left_as_it_was(supernet, uneven_subnet, input_ids, name, training):
    model = copy.deepcopy(supernet).train(training)
    model.gpt_neox.layers[1].train(not training).requires_grad_(False)
    before = state_of(model)
    make(name, model, input_ids)(uneven_subnet)
    assert state_of(model) == before
    assert before["gradients"] == [None] * len(before["gradients"])


@each_proxy
def test_dropout_is_off_while_a_proxy_is_taken(make_stock, make_supernet, uneven_subnet, input_ids, name):
    dropping = make_supernet(make_stock(hidden_dropout=0.5))
    expected = make(name, dropping, input_ids)(uneven_subnet)
    assert make(name, dropping.train(), input_ids)(uneven_subnet) == expected


@each_proxy
@pytest.mark.parametrize("frozen", ["gpt_neox.layers.2", "gpt_neox.embed_in", ""])
def test_frozen_parameters_count_as_the_others_do(supernet, uneven_subnet, input_ids, name, frozen):
    model = copy.deepcopy(supernet)
    model.get_submodule(frozen).requires_grad_(False)
    expected = make(name, supernet, input_ids)(uneven_subnet)
    assert make(name, model, input_ids).settings == make(name, supernet, input_ids).settings
    assert make(name, model, input_ids)(uneven_subnet) == pytest.approx(expected, rel=1e-6)


@each_proxy
def test_proxy_is_taken_where_no_gradients_are_recorded(supernet, uneven_subnet, input_ids, name):
    proxy = make(name, supernet, input_ids)
    with torch.no_grad():
        assert proxy(uneven_subnet) == pytest.approx(proxy(uneven_subnet), rel=1e-6)
    expected = ORACLES[name](extract_subnet(supernet, uneven_subnet), input_ids)
    with torch.no_grad():
        assert proxy(uneven_subnet) == pytest.approx(expected, rel=1e-4)


# In a search


def search(supernet, space, proxy, folder=None):
    return search_subnets(
        supernet,
        space,
        bin=ParameterBin(0, 1e9),
        config=RandomSearchConfig(evaluations=4),
        fitness=proxy,
        output_dir=folder,
        progress=False,
    )


@pytest.mark.slow_after(5)
@pytest.mark.parametrize(
    ("name", "tokens"),
    [("magnitude", 0), ("gradient norm", 36), ("snip", 36), ("synflow", 1), ("jacobian covariance", 36)],
)
def test_search_records_the_proxy_and_its_cost(supernet, space, input_ids, tmp_path, name, tokens):
    proxy = make(name, supernet, input_ids)
    found = search(supernet, space, proxy, tmp_path)
    for evaluation in found.evaluations:
        assert evaluation.fitness == proxy(evaluation.subnet) and math.isfinite(evaluation.fitness)
        assert (evaluation.tokens, evaluation.flops) == (tokens, proxy.flops(evaluation.subnet))
        assert evaluation.flops >= num_parameters(supernet.config, evaluation.subnet)
    assert search(supernet, space, make(name, supernet, input_ids), tmp_path).evaluations == found.evaluations


def test_search_by_importance_costs_nothing(space, tmp_path):
    of_layers = {"num_attention_heads": (np.arange(4.0),) * 5, "intermediate_size": (np.arange(64.0),) * 5}
    scores = ImportanceScores(np.arange(5.0), {"hidden_size": np.ones(32), **of_layers})
    found = search(None, space, RetainedImportance(scores), tmp_path)
    for evaluation in found.evaluations:
        assert -1 <= evaluation.fitness == RetainedImportance(scores)(evaluation.subnet) < 0
        assert (evaluation.tokens, evaluation.flops) == (0, 0)
    assert search(None, space, RetainedImportance(scores), tmp_path).evaluations == found.evaluations


@pytest.mark.parametrize("name", ["gradient norm", "snip"])
def test_flops_are_those_of_a_forward_and_a_backward_pass(supernet, space, draw, input_ids, name):
    subnet = draw(space, 2)
    student = extract_subnet(supernet, subnet)
    student.set_attn_implementation("eager")  # all that the counter sees
    with FlopCounterMode(display=False) as counter:
        student(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
    assert make(name, supernet, input_ids).flops(subnet) == counter.get_total_flops()


def test_flops_of_jacobians_are_those_of_a_backward_pass_to_the_embeddings_alone(supernet, space, draw, input_ids):
    subnet = draw(space, 2)
    student = extract_subnet(supernet, subnet).requires_grad_(False)
    student.set_attn_implementation("eager")  # all that the counter sees
    embeddings = student.get_input_embeddings()(input_ids).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        student(inputs_embeds=embeddings, use_cache=False).logits.sum().backward()
    assert JacobianCovariance(supernet, input_ids).flops(subnet) == counter.get_total_flops()


@pytest.mark.slow_after(9)
@each_proxy
def test_weights_that_contain_nan_count_as_worst_in_a_search(supernet, space, input_ids, name):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    found = search(broken, space, make(name, broken, input_ids))
    assert [evaluation.fitness for evaluation in found.evaluations] == [math.inf] * 4


@each_proxy
def test_settings_tell_other_weights_and_other_proxies_apart(supernet, make_stock, make_supernet, input_ids, name):
    settings = make(name, supernet, input_ids).settings
    assert make(name, copy.deepcopy(supernet), input_ids).settings == settings
    assert make(name, make_supernet(make_stock(seed=1)), input_ids).settings != settings
    assert [other for other in ORACLES if make(other, supernet, input_ids).settings == settings] == [name]
