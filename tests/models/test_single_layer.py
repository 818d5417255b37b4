"""Layers run one at a time give what the whole model gives."""

import pytest
import torch

from hf_whittle import extract_subnet
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.models.single_layer import Embedding, SingleLayer
from hf_whittle.models.source import Source

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CPU = torch.device("cpu")


@pytest.fixture(params=["full", "whole heads", "any heads"])
def model(request, any_supernet, draw_within):
    """The super-network, and students of it whose layers differ."""
    if request.param == "full":
        return any_supernet
    names_optional = request.param == "any heads"
    return extract_subnet(any_supernet, draw_within(any_supernet.config, 3, names_optional=names_optional))


def matrices(model):
    """Names of the matrices of a layer, without the layer's own name."""
    table = get_architecture(model.config)
    prefix = f"{table.layers}.{{layer}}."
    return [weight.module.removeprefix(prefix) for weight in table.weights if weight.in_layer and weight.is_matmul]


@torch.no_grad()
def run(model, input_ids):
    """Hidden states before and after every layer, the normalized last ones, and inputs and outputs of every matrix."""
    inputs, outputs, states, hooks = {}, {}, [], []
    layers = model.get_submodule(get_architecture(model.config).layers)
    for index, layer in enumerate(layers):
        for name in matrices(model):

            def keep(module, arguments, output, key=(index, name)):
                inputs[key], outputs[key] = arguments[0], output

            hooks.append(layer.get_submodule(name).register_forward_hook(keep))
        hooks.append(layer.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0])))

    def keep_last(module, arguments, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks.append(layers[len(layers) - 1].register_forward_hook(keep_last))
    normalized = model.base_model(input_ids, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states, normalized, inputs, outputs


def test_layer_by_layer_is_the_whole_model(model, input_ids):
    states, normalized, inputs, outputs = run(model, input_ids)
    layers, weights = get_architecture(model.config).layers, model.state_dict()
    hidden_states = Embedding(Source(weights, model.config, CPU))(input_ids)
    torch.testing.assert_close(hidden_states, states[0], **CLOSE)
    for index in range(model.config.num_hidden_layers):
        names = {name: f"{layers}.0.{name}" for name in matrices(model)}
        layer = SingleLayer(Source(weights, model.config, CPU), index)
        activations = layer.recorded(hidden_states, names.values(), names.values())
        for name, recorded in names.items():
            torch.testing.assert_close(activations.inputs[recorded], inputs[index, name], **CLOSE)
            torch.testing.assert_close(activations.outputs[recorded], outputs[index, name], **CLOSE)
        hidden_states = layer(hidden_states)
        torch.testing.assert_close(hidden_states, states[index + 1], **CLOSE)
    norm = get_architecture(model.config).weights[-1].norm
    torch.testing.assert_close(layer.module(norm)(hidden_states), normalized, **CLOSE)


def test_layer_stops_after_what_is_recorded(model, input_ids):
    states = run(model, input_ids)[0]
    layer, ran = SingleLayer(Source(model.state_dict(), model.config, CPU), 0), []
    names = [f"{get_architecture(model.config).layers}.0.{name}" for name in matrices(model)]
    for name in names:
        layer.module(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    layer(states[0])
    first, last, ran[:] = ran[0], ran[-1], []
    found = layer.recorded(states[0], [first]).inputs
    assert ran == [] and found.keys() == {first}
    found = layer.recorded(states[0], outputs=[first]).outputs
    assert ran == [first] and found.keys() == {first}
    ran.clear()
    layer.recorded(states[0], [last])
    assert sorted(ran) == sorted(set(names) - {last})


def test_token_for_padding_is_no_error_and_layers_that_slide_do_so(make_stock, input_ids):
    changes = {"pad_token_id": 5, "use_sliding_window": True, "sliding_window": 3}
    stock = make_stock(
        model_type="qwen3",
        layer_types=["full_attention", "sliding_attention"] * 2,
        **changes | {"num_hidden_layers": 4},
    )
    states, source = run(stock, input_ids)[0], Source(stock.state_dict(), stock.config, CPU)
    for index in range(4):
        layer = SingleLayer(source, index)
        assert layer.model.config.layer_types == [stock.config.layer_types[index]]
        torch.testing.assert_close(layer(states[index]), states[index + 1], **CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": 5, "eos_token_id": 7},
        {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "partial_rotary_factor": 0.5, "factor": 2.0}},
    ],
)
def test_nothing_of_the_configuration_is_lost(make_stock, input_ids, changes):
    stock = make_stock(**changes)
    before = run(stock, input_ids)[0]
    done = SingleLayer(Source(stock.state_dict(), stock.config, CPU), 1)(before[1])
    torch.testing.assert_close(done, before[2], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_runs_in_single_precision_whatever_the_weights_are_in(make_stock, input_ids, dtype):
    stock = make_stock().to(dtype)
    weights = stock.state_dict()
    before = run(stock.float(), input_ids)[0]
    hidden_states = SingleLayer(Source(weights, stock.config, CPU), 2)(before[2])
    assert hidden_states.dtype == torch.float32
    torch.testing.assert_close(hidden_states, before[3], **CLOSE)


def test_layer_shares_weights_sees_their_changes_and_leaves_configuration_and_random_numbers_alone(make_stock):
    stock, generator = make_stock(), torch.get_rng_state()
    before, weights = stock.config.to_dict(), stock.state_dict()
    layer, hidden_states = SingleLayer(Source(weights, stock.config, CPU), 3), torch.randn(2, 5, 32)
    name = "mlp.dense_4h_to_h.weight"
    held = layer.model.gpt_neox.layers[0].get_parameter(name)
    assert held.data_ptr() == weights[f"gpt_neox.layers.3.{name}"].data_ptr()
    first = layer(hidden_states)
    with torch.no_grad():
        weights[f"gpt_neox.layers.3.{name}"].zero_()
    assert not torch.equal(layer(hidden_states), first)
    assert stock.config.to_dict() == before
    torch.set_rng_state(generator)
    SingleLayer(Source(weights, stock.config, CPU), 3)
    assert torch.equal(torch.get_rng_state(), generator)


def test_hooks_are_gone_after_the_call_and_after_an_error(supernet):
    layer = SingleLayer(Source(supernet.state_dict(), supernet.config, CPU), 0)
    names = ["gpt_neox.layers.0.mlp.dense_h_to_4h"]
    layer.recorded(torch.randn(1, 3, 32), names, names)
    with pytest.raises(RuntimeError):
        layer.recorded(torch.randn(1, 3, 31), names, names)
    modules = [layer.module(name) for name in names]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
