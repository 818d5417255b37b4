"""A super-network: equality with the stock model, state after `active_subnet` blocks, and loading."""

import copy
import re
from types import MethodType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from hf_whittle import GPTNeoXSuperNetForCausalLM, SubnetConfig, extract_subnet
from hf_whittle.errors import ArchitectureError, SubnetError

CLOSE = {"rtol": 0, "atol": 1e-5}


def student_of(supernet, subnet):
    """The student, with the attention kernel of its super-network."""
    student = extract_subnet(supernet, subnet)
    student.set_attn_implementation(supernet.config._attn_implementation)
    return student


def logits(model, input_ids, **inputs):
    with torch.no_grad():
        return model(input_ids=input_ids, **inputs).logits


def cached_logits(model, input_ids, **inputs):
    """Logits of one token after the other, with a cache."""
    cache, steps = None, []
    with torch.no_grad():
        for token in input_ids.T:
            output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True, **inputs)
            cache = output.past_key_values
            steps.append(output.logits)
    return torch.cat(steps, dim=1)


# The full model


def test_state_dict_has_the_names_of_the_stock_model(supernet, stock):
    assert list(supernet.state_dict()) == list(stock.state_dict())


def test_stock_state_dict_loads_strictly(make_stock, supernet, input_ids):
    other = make_stock(seed=1)
    loaded = copy.deepcopy(supernet)
    loaded.load_state_dict(other.state_dict(), strict=True)
    torch.testing.assert_close(logits(loaded, input_ids), logits(other, input_ids), **CLOSE)


def test_saved_stock_model_loads_as_a_super_network(stock, input_ids, tmp_path):
    stock.save_pretrained(tmp_path)
    loaded, info = GPTNeoXSuperNetForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits(loaded, input_ids), logits(stock, input_ids), **CLOSE)


def test_saved_super_network_is_the_file_a_stock_model_saves(supernet, stock, input_ids, tmp_path):
    supernet.save_pretrained(tmp_path / "supernet")
    stock.save_pretrained(tmp_path / "stock")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("supernet", "stock"))
    assert ours.keys() == theirs.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "supernet")
    assert type(loaded) is GPTNeoXForCausalLM
    torch.testing.assert_close(logits(loaded, input_ids), logits(stock, input_ids), **CLOSE)


def test_copy_of_a_super_network_runs_the_subnet_on_its_own_weights(supernet, uneven_subnet, input_ids):
    twin = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    with twin.active_subnet(uneven_subnet):
        of_subnet = logits(twin, input_ids)
    torch.testing.assert_close(of_subnet, logits(student_of(twin, uneven_subnet), input_ids), **CLOSE)


# State after a block


def _state(supernet):
    configs = [id(module.config) for module in supernet.modules() if hasattr(module, "config")]
    layers = [layer.attention.layer_idx for layer in supernet.gpt_neox.layers]
    return configs, layers, supernet.config.to_dict()


def test_full_model_is_back_after_the_block(supernet, space, draw, input_ids):
    before, full = _state(supernet), logits(supernet, input_ids)
    with supernet.active_subnet(draw(space, 0)):
        assert not torch.equal(logits(supernet, input_ids), full)
    assert _state(supernet) == before
    assert before[1] == [0, 1, 2, 3, 4]
    assert torch.equal(logits(supernet, input_ids), full)
    assert torch.equal(cached_logits(supernet, input_ids), cached_logits(supernet, input_ids))


def test_full_model_is_back_after_an_exception(supernet, uneven_subnet, input_ids):
    before, full = _state(supernet), logits(supernet, input_ids)
    with pytest.raises(RuntimeError, match="in the block"), supernet.active_subnet(uneven_subnet):
        raise RuntimeError("in the block")
    assert _state(supernet) == before
    assert torch.equal(logits(supernet, input_ids), full)


def test_subnet_that_does_not_fit_leaves_the_model_as_it_is(supernet, input_ids):
    before, full = _state(supernet), logits(supernet, input_ids)
    message = "hidden_size: cannot keep 33 channels, the super-network has 32; keep 1 to 32"
    with pytest.raises(SubnetError, match=re.escape(message)), supernet.active_subnet(SubnetConfig(33, 2, 2, 5)):
        pass
    assert _state(supernet) == before
    assert torch.equal(logits(supernet, input_ids), full)


def test_nested_blocks_refer_to_the_full_model_and_restore_the_outer_one(supernet, uneven_subnet, input_ids):
    before, full = _state(supernet), logits(supernet, input_ids)
    other = SubnetConfig(32, [1, 2, 3, 4], [4, 3, 2, 1], 60)
    with supernet.active_subnet(uneven_subnet):
        outer, outer_state = logits(supernet, input_ids), _state(supernet)[1:]
        with supernet.active_subnet(other):
            of_other = logits(supernet, input_ids)
        assert torch.equal(logits(supernet, input_ids), outer)
        assert _state(supernet)[1:] == outer_state
        with pytest.raises(KeyError, match="inner"), supernet.active_subnet(other):
            raise KeyError("inner")
        assert torch.equal(logits(supernet, input_ids), outer)
    torch.testing.assert_close(of_other, logits(student_of(supernet, other), input_ids), **CLOSE)
    assert _state(supernet) == before
    assert torch.equal(logits(supernet, input_ids), full)


def test_config_inside_the_block_describes_the_subnet(supernet, uneven_subnet):
    with supernet.active_subnet(uneven_subnet) as active:
        assert active is supernet
        assert (active.config.hidden_size, active.config.num_hidden_layers) == (22, 3)
        assert [layer.num_attention_heads for layer in active.config.per_layer_config] == [2, 4, 1]
        assert [layer.intermediate_size for layer in active.config.per_layer_config] == [40, 24, 64]


# Checkpoints


def _save_as_old_pythia(stock, folder, output_matrix):
    """Save as the files on the Hub were written: another name of the output matrix, and buffers of old attention."""
    stock.config.save_pretrained(folder)
    tensors = stock.state_dict()
    tensors[output_matrix] = tensors.pop("lm_head.weight")
    for layer in range(stock.config.num_hidden_layers):
        prefix = f"gpt_neox.layers.{layer}.attention."
        tensors[prefix + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("output_matrix", ["embed_out.weight", "lm_head.weight"])
@pytest.mark.parametrize("model_class", [GPTNeoXForCausalLM, GPTNeoXSuperNetForCausalLM])
def test_old_pythia_file_loads_whole(model_class, output_matrix, stock, input_ids, tmp_path):
    _save_as_old_pythia(stock, tmp_path, output_matrix)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    torch.testing.assert_close(logits(loaded, input_ids), logits(stock, input_ids), **CLOSE)


def test_checkpoint_of_another_architecture_is_an_error_that_names_it(tmp_path):
    LlamaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    message = f"{tmp_path} is a llama, and GPTNeoXSuperNetForCausalLM loads gpt_neox; use AutoSuperNetForCausalLM"
    with pytest.raises(ArchitectureError, match=re.escape(message)):
        GPTNeoXSuperNetForCausalLM.from_pretrained(tmp_path)


# The list of layers gives the active ones, in whichever way a forward iterates over it

WAYS = {
    "iterated": lambda model: model.layers,
    "Llama": lambda model: model.layers[: model.config.num_hidden_layers],
    "indexed": lambda model: [model.layers[index] for index in range(len(model.layers))],
    "indexed from the end": lambda model: [
        model.layers[index - len(model.layers)] for index in range(len(model.layers))
    ],
    "in parts": lambda model: [*model.layers[:1], *model.layers[1:]],
    "reversed twice": lambda model: reversed(list(reversed(model.layers))),
}
SUBNETS = [
    SubnetConfig([*range(20), 25, 31], [0, 2, 4], [[1, 3], 4, [2]], [40, 24, 64]),
    SubnetConfig(24, [1, 3, 4], 3, 40),
    SubnetConfig(32, [3], 4, 64),
]


@pytest.fixture
def through(supernet):
    """A function that copies the super-network and sets the way in which its forward iterates over layers."""

    def build(way):
        def forward(self, input_ids, **_):
            hidden_states = self.embed_in(input_ids)
            position_ids = torch.arange(input_ids.shape[1])[None]
            position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
            for layer in way(self):
                hidden_states = layer(hidden_states, attention_mask=None, position_embeddings=position_embeddings)
            return BaseModelOutputWithPast(last_hidden_state=self.final_layer_norm(hidden_states))

        model = copy.deepcopy(supernet)
        model.gpt_neox.forward = MethodType(forward, model.gpt_neox)
        return model

    return build


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_forward_that_goes_through_the_layers_any_way_runs_the_subnet(through, supernet, stock, input_ids, way):
    model = through(way)
    for subnet in SUBNETS:
        with model.active_subnet(subnet):
            of_subnet = logits(model, input_ids)
        torch.testing.assert_close(of_subnet, logits(student_of(supernet, subnet), input_ids), **CLOSE)
    torch.testing.assert_close(logits(model, input_ids), logits(stock, input_ids), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["Llama", *(pytest.param(way, marks=pytest.mark.slow) for way in ("iterated", "indexed"))]
)
def test_compiled_forward_runs_the_subnet_that_is_active(through, supernet, stock, input_ids, way):
    torch._dynamo.reset()
    model = through(WAYS[way])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, input_ids), logits(stock, input_ids), **CLOSE)
    for subnet in [*SUBNETS, SUBNETS[0]]:
        with model.active_subnet(subnet):
            of_subnet = logits(compiled, input_ids)
        torch.testing.assert_close(of_subnet, logits(student_of(supernet, subnet), input_ids), **CLOSE)
    torch.testing.assert_close(logits(compiled, input_ids), logits(stock, input_ids), **CLOSE)
    torch._dynamo.reset()


def test_list_of_layers_agrees_with_itself_and_names_go_by_the_full_list(supernet):
    layers = supernet.gpt_neox.layers
    every = list(layers)
    names = [name for name, _ in supernet.named_modules()]
    for subnet in SUBNETS:
        with supernet.active_subnet(subnet):
            expected = [every[index] for index in subnet.layers]
            count = len(expected)
            assert len(layers) == count == supernet.config.num_hidden_layers
            assert list(layers) == list(layers[:]) == list(layers.__add__([])) == expected
            assert list(reversed(layers)) == expected[::-1] == list(layers[::-1])
            assert [layers[index] for index in range(-count, count)] == expected * 2
            assert [layer in layers for layer in every] == [index in subnet.layers for index in range(5)]
            assert [layer.attention.layer_idx for layer in layers] == [*range(count)]
            for index in (count, -count - 1):
                with pytest.raises(IndexError):
                    layers[index]
            assert [child for _, child in layers.named_children()] == every
            assert [name for name, _ in supernet.named_modules()] == names
            assert supernet.get_submodule("gpt_neox.layers.1") is every[1]
            assert list(copy.deepcopy(layers).state_dict()) == list(layers.state_dict())
    assert list(layers) == every


def test_hooks_of_active_layers_are_called_and_of_no_others(supernet, input_ids):
    called = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
        for index, layer in enumerate(supernet.gpt_neox.layers)
    ]
    try:
        for subnet in SUBNETS:
            with supernet.active_subnet(subnet):
                output = supernet(input_ids, output_hidden_states=True, use_cache=False)
            assert called == list(subnet.layers)
            assert len(output.hidden_states) == len(subnet.layers) + 1
            called.clear()
    finally:
        for hook in hooks:
            hook.remove()


CHANGES = {
    "append": lambda layers: layers.append(layers[0]),
    "extend": lambda layers: layers.extend([layers[0]]),
    "add in place": lambda layers: layers.__iadd__([layers[0]]),
    "insert": lambda layers: layers.insert(0, layers[0]),
    "set": lambda layers: layers.__setitem__(0, layers[1]),
    "delete": lambda layers: layers.__delitem__(0),
    "delete some": lambda layers: layers.__delitem__(slice(1)),
    "pop": lambda layers: layers.pop(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_list_of_layers_is_not_changed_while_a_subnet_is_active(supernet, change):
    layers = copy.deepcopy(supernet).gpt_neox.layers
    before, names = list(layers), list(layers.state_dict())
    layers.active = (1, 3)
    message = "a subnet is active: leave the active_subnet block before you change the list of layers"
    with pytest.raises(SubnetError, match=message):
        change(layers)
    layers.active = None
    assert list(layers) == before
    assert list(layers.state_dict()) == names
    change(layers)
    assert list(layers) != before


@pytest.mark.parametrize("before, after", [("eager", "sdpa"), ("sdpa", "eager")])
def test_attention_kernel_set_while_a_subnet_is_active_is_the_whole_models(make_stock, make_supernet, before, after):
    model = make_supernet(make_stock(attn_implementation=before))
    input_ids = torch.randint(1, 99, (2, 12), generator=torch.Generator().manual_seed(7))
    expected = logits(student_of(model, SUBNETS[0]), input_ids)
    with model.active_subnet(SUBNETS[0]):
        model.set_attn_implementation(after)
        torch.testing.assert_close(logits(model, input_ids), expected, **CLOSE)
        assert model.config._attn_implementation == after
        assert {layer.attention.config._attn_implementation for layer in model.gpt_neox.layers} == {after}
    assert model.config._attn_implementation == after
