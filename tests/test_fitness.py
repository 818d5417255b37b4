"""Perplexity against the loss of the stock model and of the student."""

import copy
import math
import re

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import GPTNeoXSuperNetForCausalLM, SubnetConfig, extract_subnet
from hf_whittle.errors import DataError, VocabularyError
from hf_whittle.fitness import Perplexity, cross_entropy, model_fingerprint


def perplexity_of(model, input_ids):
    """By the loss of transformers, block by block."""
    with torch.no_grad():
        losses = [model(block[None], labels=block[None]).loss.double() for block in input_ids]
    return math.exp(torch.stack(losses).mean())


@pytest.mark.parametrize("seed", range(2))
def test_perplexity_of_a_subnet_is_that_of_its_student(supernet, space, draw, input_ids, seed):
    subnet = draw(space, seed)
    expected = perplexity_of(extract_subnet(supernet, subnet), input_ids)
    assert Perplexity(supernet, input_ids)(subnet) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_the_full_subnet_is_that_of_the_stock_model_on_text(teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    ids = torch.tensor(tokenizer("the five boxing wizards whittle a model, layer by layer. " * 4)["input_ids"])
    blocks = ids[: len(ids) // 16 * 16].view(-1, 16)
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(teacher_folder)
    expected = perplexity_of(AutoModelForCausalLM.from_pretrained(teacher_folder), blocks)
    assert Perplexity(supernet, blocks)(SubnetConfig.full(supernet.config)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_perplexity_does_not_depend_on_the_batch_size(supernet, uneven_subnet, input_ids, batch_size):
    expected = Perplexity(supernet, input_ids, batch_size=3)(uneven_subnet)
    assert Perplexity(supernet, input_ids, batch_size)(uneven_subnet) == pytest.approx(expected, rel=1e-6)


def test_dataset_and_tensor_are_the_same_text(supernet, uneven_subnet, input_ids):
    from_dataset = Perplexity(supernet, Dataset.from_dict({"input_ids": input_ids.tolist()}))
    from_tensor = Perplexity(supernet, input_ids)
    assert from_dataset.settings == from_tensor.settings
    assert from_dataset(uneven_subnet) == from_tensor(uneven_subnet)


def test_dropout_is_off_while_perplexity_is_taken_and_training_goes_on_after_it(make_stock, make_supernet, input_ids):
    supernet = make_supernet(make_stock(hidden_dropout=0.5))
    perplexity = Perplexity(supernet, input_ids)
    expected = perplexity(SubnetConfig(24, 3, 3, 40))
    supernet.train()
    assert perplexity(SubnetConfig(24, 3, 3, 40)) == expected
    assert all(module.training for module in supernet.modules())


def test_cross_entropy_is_in_nats_per_predicted_token(stock, input_ids):
    assert math.exp(cross_entropy(stock, input_ids)) == pytest.approx(perplexity_of(stock, input_ids), rel=1e-5)


def test_perplexity_of_a_broken_model_is_huge_but_finite(supernet, input_ids):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.lm_head.weight.mul_(1e6)
    assert Perplexity(broken, input_ids)(SubnetConfig(24, 3, 3, 40)) == math.exp(700)


def test_settings_tell_other_text_and_other_weights_apart(supernet, make_stock, make_supernet, input_ids):
    settings = Perplexity(supernet, input_ids).settings
    assert (settings["tokens"], settings["block_size"]) == (36, 12)
    assert Perplexity(copy.deepcopy(supernet), input_ids.clone()).settings == settings
    assert Perplexity(supernet, input_ids.flip(0)).settings["data"] != settings["data"]
    assert Perplexity(make_supernet(make_stock(seed=1)), input_ids).settings["model"] != settings["model"]


@pytest.mark.parametrize("blocks", [None, Dataset.from_dict({"input_ids": []})], ids=["none", "empty"])
def test_no_text_is_an_error(supernet, blocks):
    with pytest.raises(DataError, match="there are no blocks of text to evaluate on; give a dataset of packed"):
        Perplexity(supernet, blocks)


@pytest.mark.parametrize("shape", [(0, 12), (3, 1), (12,)])
def test_text_that_is_not_in_blocks_is_an_error(supernet, shape):
    message = f"expected token ids of shape (blocks, block_size), got {shape}"
    with pytest.raises(DataError, match=re.escape(message)):
        Perplexity(supernet, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(("ids", "span"), [([[1, 2, 99]], "from 1 to 99"), ([[-1, 2, 3]], "from -1 to 3")])
def test_text_of_another_vocabulary_is_an_error(supernet, ids, span):
    message = f"the text has token ids {span}, the model's vocabulary has 99 entries; tokenize with the model's own"
    with pytest.raises(VocabularyError, match=re.escape(message)):
        Perplexity(supernet, torch.tensor(ids))


def test_fingerprint_knows_one_changed_value_and_the_dtype(supernet):
    changed = copy.deepcopy(supernet)
    before = model_fingerprint(changed)
    assert before == model_fingerprint(supernet)
    with torch.no_grad():
        changed.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[3, 5] += 1e-3
    assert model_fingerprint(changed) != before
    assert model_fingerprint(copy.deepcopy(supernet).double()) != before


def test_blocks_of_another_type_are_an_error(supernet):
    with pytest.raises(DataError, match=r"expected a datasets\.Dataset or a tensor of token ids, got a list"):
        Perplexity(supernet, [[1, 2, 3]])
