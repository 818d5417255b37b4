"""Extraction: the student is a copy of the slice, in the class and state that were asked for."""

import copy
import re

import pytest
import torch
from transformers import GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_whittle import SubnetConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.errors import ArchitectureError, SubnetError
from hf_whittle.subnet import Shape

STOCK_SUBNET = SubnetConfig(24, [0, 2, 4], 3, 40)


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def assert_equal_weights(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_weights_are_the_rows_and_columns_of_the_kept_entries(stock, uneven_subnet):
    channels, neurons = [*range(20), 25, 31], [*range(3, 50, 2)]
    student, source = extract_subnet(stock, uneven_subnet).state_dict(), stock.state_dict()
    assert torch.equal(student["gpt_neox.embed_in.weight"], source["gpt_neox.embed_in.weight"][:, channels])
    assert torch.equal(student["lm_head.weight"], source["lm_head.weight"][:, channels])
    mlp = source["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"]
    assert torch.equal(student["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"], mlp[neurons][:, channels])
    qkv = source["gpt_neox.layers.0.attention.query_key_value.weight"].view(4, 3, 8, 32)
    by_head = student["gpt_neox.layers.0.attention.query_key_value.weight"].view(2, 3, 8, 22)
    assert torch.equal(by_head, qkv[[1, 3]][..., channels])
    dense = source["gpt_neox.layers.4.attention.dense.weight"].view(32, 4, 8)
    by_head = student["gpt_neox.layers.2.attention.dense.weight"].view(22, 1, 8)
    assert torch.equal(by_head, dense[channels][:, [2]])


@pytest.mark.parametrize("seed", range(4))
def test_subnet_of_a_subnet_is_the_composed_subnet(variant_supernet, draw_within, input_ids, seed):
    outer = draw_within(Shape.from_config(variant_supernet.config), seed)
    inner = draw_within(outer.shape, seed + 100)
    twice = extract_subnet(extract_subnet(variant_supernet, outer), inner)
    once = extract_subnet(variant_supernet, outer.compose(inner))
    assert_equal_weights(twice, once)
    assert torch.equal(logits(twice, input_ids), logits(once, input_ids))


def test_composition_of_spaces_own_draws(supernet, space, draw, draw_within):
    outer = draw(space, 5)
    inner = draw_within(outer.shape, 6)
    once = extract_subnet(supernet, outer.compose(inner))
    assert_equal_weights(extract_subnet(extract_subnet(supernet, outer), inner), once)


def test_full_subnet_is_a_stock_model_with_the_same_weights(stock, input_ids):
    student = extract_subnet(stock, SubnetConfig.full(stock.config))
    assert type(student) is GPTNeoXForCausalLM
    assert_equal_weights(student, stock)
    assert torch.equal(logits(student, input_ids), logits(stock, input_ids))


def test_super_network_and_stock_model_give_the_same_student(supernet, stock, uneven_subnet):
    assert_equal_weights(extract_subnet(supernet, uneven_subnet), extract_subnet(stock, uneven_subnet))


def test_whittle_format_holds_a_stock_student_with_equal_logits(supernet, input_ids):
    whittle = extract_subnet(supernet, STOCK_SUBNET, format="whittle")
    stock = extract_subnet(supernet, STOCK_SUBNET, format="stock")
    assert (type(whittle), type(stock)) == (WhittleGPTNeoXForCausalLM, GPTNeoXForCausalLM)
    assert_equal_weights(whittle, stock)
    torch.testing.assert_close(logits(whittle, input_ids), logits(stock, input_ids), rtol=0, atol=1e-5)


def test_student_shares_no_memory_with_the_super_network(variant_supernet, space, draw):
    student = extract_subnet(variant_supernet, draw(space, 3))
    taken = {tensor.untyped_storage().data_ptr() for tensor in variant_supernet.state_dict().values()}
    assert not taken & {tensor.untyped_storage().data_ptr() for tensor in student.state_dict().values()}


def test_full_student_shares_no_memory_either(supernet, input_ids):
    before = logits(supernet, input_ids)
    with torch.no_grad():
        for parameter in extract_subnet(supernet, SubnetConfig.full(supernet.config)).parameters():
            parameter.zero_()
    assert torch.equal(logits(supernet, input_ids), before)


def test_weights_of_a_student_are_contiguous(supernet, uneven_subnet):
    student = extract_subnet(supernet, uneven_subnet)
    assert all(parameter.is_contiguous() for parameter in student.parameters())


def test_student_is_in_evaluation_mode_whatever_the_super_network_is_in(supernet, uneven_subnet):
    training = copy.deepcopy(supernet).train()
    student = extract_subnet(training, uneven_subnet)
    assert not any(module.training for module in student.modules())
    assert all(module.training for module in training.modules())


def test_student_has_trainable_parameters_also_of_a_frozen_super_network(supernet, uneven_subnet):
    frozen = copy.deepcopy(supernet).requires_grad_(False)
    assert all(parameter.requires_grad for parameter in extract_subnet(frozen, uneven_subnet).parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_student_keeps_the_dtype(supernet, uneven_subnet, dtype):
    student = extract_subnet(copy.deepcopy(supernet).to(dtype), uneven_subnet)
    assert {parameter.dtype for parameter in student.parameters()} == {dtype}
    exact = extract_subnet(supernet, uneven_subnet)
    for ours, theirs in zip(student.parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype))


def test_tied_student_stays_tied(make_stock, uneven_subnet):
    student = extract_subnet(make_stock(tie_word_embeddings=True), uneven_subnet)
    assert student.lm_head.weight is student.gpt_neox.embed_in.weight


def test_student_generates_with_the_settings_of_the_super_network(supernet, uneven_subnet):
    source = copy.deepcopy(supernet)
    source.generation_config.max_new_tokens = 7
    student = extract_subnet(source, uneven_subnet)
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config is not source.generation_config


@pytest.mark.parametrize(
    "subnet", [SubnetConfig(24, 2, [3, 2], 40), SubnetConfig(24, 2, 3, [40, 30]), SubnetConfig(24, 2, 2, 40)]
)
def test_stock_format_refuses_what_it_cannot_hold(supernet, subnet):
    message = "stock GPT-NeoX holds only layers that are all alike, with num_attention_heads * 8 = hidden_size, got"
    with pytest.raises(SubnetError, match=re.escape(message)):
        extract_subnet(supernet, subnet, format="stock")


def test_unknown_format_is_an_error(supernet):
    with pytest.raises(SubnetError, match="format must be one of auto, stock, whittle, padded, got 'gguf'"):
        extract_subnet(supernet, STOCK_SUBNET, format="gguf")


def test_subnet_that_does_not_fit_is_an_error(supernet):
    with pytest.raises(SubnetError, match="num_hidden_layers: cannot keep 6 layers, the super-network has 5"):
        extract_subnet(supernet, SubnetConfig(24, 6, 2, 40))


def test_model_of_another_architecture_is_an_error():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=99, **sizes))
    with pytest.raises(ArchitectureError, match="the architecture is 'llama'; hf_whittle knows"):
        extract_subnet(llama, SubnetConfig(24, 1, 3, 40))
