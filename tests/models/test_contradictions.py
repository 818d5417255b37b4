"""Checkpoints whose configuration and weights contradict each other: every reader treats them alike.

What stock transformers makes of a file is the reference, unless that is a model of random or NaN weights.
"""

import json
import logging
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXForCausalLM

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    HealingConfig,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    score_importance,
    sort_by_importance,
    store_targets,
)
from hf_whittle.cost import num_parameters
from hf_whittle.distillation.teacher import load_teacher
from hf_whittle.errors import CheckpointError, SubnetError, WeightsError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEAD, EMBEDDING = "embed_out.weight", "gpt_neox.embed_in.weight"
FINE = SubnetConfig([*range(20), 25, 31], [0, 2], [[1, 3], 4], [40, [*range(3, 50, 2)]])


@pytest.fixture(scope="module")
def make_checkpoint(make_stock, tmp_path_factory):
    """A function that saves a tiny stock model and changes its tensors and its configuration."""

    def build(change=None, *, saved=None, **stated):
        folder = tmp_path_factory.mktemp("contradiction")
        make_stock(**{"num_hidden_layers": 3, **(saved or {})}).save_pretrained(folder)
        tensors = load_file(folder / WEIGHTS)
        if change is not None:
            change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **stated}))
        return folder

    return build


@pytest.fixture
def warnings(caplog):
    """Log of transformers and hf_whittle, as one text."""
    for name in ("transformers", "hf_whittle"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield lambda: caplog.text
    for name in ("transformers", "hf_whittle"):
        logging.getLogger(name).removeHandler(caplog.handler)


def logits(model, input_ids):
    with torch.no_grad():
        return model.eval()(input_ids, use_cache=False).logits


def full(config):
    return SubnetConfig.full(config)


def from_memory(folder, subnet):
    return extract_subnet(GPTNeoXSuperNetForCausalLM.from_pretrained(folder), subnet)


def from_disk(folder, subnet):
    return extract_subnet(folder, subnet, progress=False)


def written(folder, subnet):
    return GPTNeoXForCausalLM.from_pretrained(
        extract_subnet(folder, subnet, folder / "student", format="padded", progress=False)
    )


# Contradictions that are resolved as in stock transformers


def twice(tensors):
    tensors[EMBEDDING] = tensors[HEAD].clone()


def under_the_name_of_the_head(tensors):
    tensors[HEAD] = tensors.pop(EMBEDDING)


def two_heads(tensors):
    tensors["lm_head.weight"] = 2 * tensors[HEAD]


def mixed(names, dtype):
    def change(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items() if names in name})

    return change


TIED = {"tie_word_embeddings": True}
RESOLVED = {
    "tied in the configuration alone": (None, {}, TIED),
    "tied, and the same matrix twice": (twice, {}, TIED),
    "tied, under the name of the head": (under_the_name_of_the_head, TIED, {}),
    "two heads": (two_heads, {}, {}),
    "biases that the configuration has not": (None, {}, {"attention_bias": False}),
    "more layers than the configuration says": (None, {"num_hidden_layers": 4}, {"num_hidden_layers": 3}),
    "mixed types": (mixed("mlp", torch.float16), {}, {"dtype": None}),
    "mixed types, the first in half precision": (mixed("final", torch.bfloat16), {}, {"dtype": None}),
}


@pytest.fixture(scope="module", params=RESOLVED.values(), ids=RESOLVED)
def resolved(request, make_checkpoint):
    change, saved, stated = request.param
    return make_checkpoint(change, saved=saved, **stated)


@pytest.mark.slow_after(3)
def test_every_reader_makes_the_same_model_as_transformers(resolved, input_ids):
    expected = GPTNeoXForCausalLM.from_pretrained(resolved)
    tensors = {id(parameter): parameter.numel() for parameter in expected.parameters()}
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(resolved)
    everything = full(supernet.config)
    readers = {
        "super-network": supernet,
        "teacher": load_teacher(str(resolved)),
        "from memory": from_memory(resolved, everything),
        "from disk": from_disk(resolved, everything),
        "written": written(resolved, everything),
    }
    for name, model in readers.items():
        torch.testing.assert_close(logits(model, input_ids), logits(expected, input_ids), msg=name)
        assert model.dtype == expected.dtype and model.num_parameters() == sum(tensors.values()), name
        assert num_parameters(model.config) == sum(tensors.values()), name


def test_slices_are_the_students_from_memory_and_from_disk(resolved, input_ids):
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(resolved)
    with supernet.active_subnet(FINE):
        active = logits(supernet, input_ids)
    ours, theirs = from_memory(resolved, FINE), from_disk(resolved, FINE)
    torch.testing.assert_close(logits(ours, input_ids), active)
    assert ours.config.to_dict() == theirs.config.to_dict()
    states = ours.state_dict(), theirs.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_healing_from_memory_and_from_disk_is_the_same(resolved, input_ids):
    blocks = torch.cat([input_ids, input_ids.flip(0)])
    settings = {"heal": HealingConfig(ridge=(0.1,)), "calibration_dataset": blocks, "progress": False}
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(resolved)
    ours, theirs = (extract_subnet(source, FINE, **settings) for source in (supernet, resolved))
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings
    torch.testing.assert_close(logits(ours, input_ids), logits(theirs, input_ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reader", [GPTNeoXSuperNetForCausalLM.from_pretrained, load_teacher, from_disk])
@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (TIED, ["embed_in.weight", "embed_out|lm_head", "(?i)not *tie"]),
        ({"attention_bias": False}, ["attention.dense.bias", "attention.query_key_value.bias"]),
        ({"num_hidden_layers": 2}, ["layers.2.attention"]),
    ],
)
def test_what_is_resolved_is_told_with_the_name_of_the_tensor(make_checkpoint, warnings, reader, stated, named):
    folder = make_checkpoint(**stated)
    config = GPTNeoXForCausalLM.config_class.from_pretrained(folder)
    if reader is from_disk:
        reader(folder, full(config))
    else:
        reader(str(folder))
    text = re.sub(r"\{[\d, ]+\}", "0", warnings())
    for name in named:
        assert re.search(name.replace("(?i)not *tie", r"(?i)not *(be )?tie"), text), (name, text)


def test_ordinary_checkpoints_and_leftovers_of_old_ones_are_read_without_a_word(make_checkpoint, warnings):
    def leftovers(tensors):
        tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-math.inf)
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.rand(4)

    for change, saved in ((None, {}), (leftovers, {}), (None, TIED)):
        folder = make_checkpoint(change, saved=saved)
        supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(folder)
        from_disk(folder, full(supernet.config))
        load_teacher(str(folder))
    assert warnings() == ""


def test_untied_super_network_is_saved_as_it_is(make_checkpoint, warnings, input_ids, tmp_path):
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(make_checkpoint(**TIED))
    supernet.save_pretrained(tmp_path)
    before = warnings()
    again = GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert not again.config.tie_word_embeddings and warnings() == before
    torch.testing.assert_close(logits(again, input_ids), logits(supernet, input_ids))


# Contradictions that every reader refuses


def without(*names):
    def change(tensors):
        for name in [name for name in tensors if any(re.search(one, name) for one in names)]:
            del tensors[name]

    return change


def first_rows(number):
    def change(tensors):
        tensors[HEAD] = tensors[HEAD][:number].clone()

    return change


def set_to(value, name):
    def change(tensors):
        tensors[name].flatten()[1] = value

    return change


NOT_FINITE = "layers.1.mlp.dense_h_to_4h.bias contains NaN or Inf"
REFUSED = {
    "no head": (without("embed_out"), {}, {}, "lacks .*lm_head.weight"),
    "a head of another size": (first_rows(90), {}, {}, r"lm_head.weight .*has the shape \(90, 32\)"),
    "a tied head of another size": (
        first_rows(90),
        {},
        TIED,
        r"another shape|shape \(90, 32\)",
    ),
    "neither embedding nor head": (without("embed_in"), TIED, {}, "lacks .*embed_in.weight"),
    "no biases": (None, {"attention_bias": False}, {"attention_bias": True}, "lacks .*attention.*bias"),
    "fewer layers": (None, {}, {"num_hidden_layers": 4}, "lacks .*layers.3."),
    "one tensor missing": (without("1.mlp.dense_h_to_4h.bias"), {}, {}, "lacks .*layers.1.mlp.dense_h_to_4h.bias"),
    "more rows": (None, {}, {"vocab_size": 90}, r"embed_in.weight .*\(99, 32\), the configuration says \(90, 32\)"),
    "fewer rows": (None, {}, {"vocab_size": 104}, r"embed_in.weight .*\(99, 32\), the configuration says \(104, 32\)"),
    "NaN": (set_to(math.nan, "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"), {}, {}, NOT_FINITE),
    "infinite": (set_to(-math.inf, "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"), {}, {}, NOT_FINITE),
}


@pytest.fixture(scope="module", params=REFUSED.values(), ids=REFUSED)
def refused(request, make_checkpoint):
    change, saved, stated, message = request.param
    return make_checkpoint(change, saved=saved, **stated), message


def test_every_reader_refuses_what_would_be_a_random_or_broken_model(refused, input_ids, tmp_path):
    folder, message = refused
    config = GPTNeoXForCausalLM.config_class.from_pretrained(folder)
    healed = {"heal": True, "calibration_dataset": input_ids % 90, "progress": False}
    readers = [
        lambda: GPTNeoXSuperNetForCausalLM.from_pretrained(folder),
        lambda: load_teacher(str(folder)),
        lambda: store_targets(folder, input_ids, tmp_path / "store", progress=False),
        lambda: from_disk(folder, full(config)),
        lambda: written(folder, full(config)),
        lambda: extract_subnet(folder, full(config), **healed),
    ]
    for reader in readers:
        with pytest.raises(CheckpointError, match=message):
            reader()


def test_other_sizes_are_loaded_where_that_is_asked_for(make_checkpoint):
    folder = make_checkpoint(vocab_size=104)
    model, info = GPTNeoXSuperNetForCausalLM.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.config.vocab_size == 104 and len(info["mismatched_keys"]) == 2


# Models in memory


def test_model_that_its_configuration_calls_tied_is_an_error_that_says_what_to_do(make_checkpoint, input_ids):
    stock = GPTNeoXForCausalLM.from_pretrained(make_checkpoint(**TIED))
    uses = [lambda: extract_subnet(stock, FINE), lambda: score_importance(stock, input_ids, progress=False)]
    for use in uses:
        with pytest.raises(WeightsError, match=r"lm_head.weight is another matrix .* set model.config.tie_word"):
            use()
    stock.config.tie_word_embeddings = False
    before = logits(stock, input_ids)
    torch.testing.assert_close(logits(extract_subnet(stock, full(stock.config)), input_ids), before)
    sort_by_importance(stock, score_importance(stock, input_ids, progress=False))
    torch.testing.assert_close(logits(stock, input_ids), before, rtol=1e-3, atol=1e-3)


def test_weights_in_memory_that_are_not_finite_are_an_error(supernet, stock, input_ids, make_stock):
    broken = make_stock()
    with torch.no_grad():
        broken.gpt_neox.layers[0].mlp.dense_h_to_4h.bias[3] = math.inf
    for use in (lambda: extract_subnet(broken, FINE), lambda: score_importance(broken, input_ids, progress=False)):
        with pytest.raises(CheckpointError, match=r"layers.0.mlp.dense_h_to_4h.bias contains NaN"):
            use()


def test_space_of_a_configuration_that_counts_other_parameters_is_an_error(make_checkpoint, input_ids):
    from hf_whittle import ParameterBin, search_subnets

    folder = make_checkpoint(**TIED)
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(folder)
    space = SearchSpace.from_config(GPTNeoXForCausalLM.config_class.from_pretrained(folder))
    with pytest.raises(SubnetError, match="the search space belongs to another super-network"):
        search_subnets(supernet, space, bin=ParameterBin(0, 1e9), eval_dataset=input_ids, progress=False)
