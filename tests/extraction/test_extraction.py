"""Extraction from memory: the student is a copy of the slice, in the class and precision asked for."""

import copy
import json
import re
from random import Random

import pytest
import torch
from small_checkpoints import assert_same_weights, logits
from small_models import TINY, draw_stock_subnet, draw_subnet
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM, StableLmConfig, StableLmForCausalLM

from hf_whittle import SubnetConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.architectures.dimensions import CHANNELS
from hf_whittle.cost import num_parameters
from hf_whittle.errors import ArchitectureError, DataError, OutputError, SubnetError
from hf_whittle.models.padding import padded_shape
from hf_whittle.subnet import Shape

STOCK_SUBNET = SubnetConfig(24, [0, 2, 4], 3, 40)


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


def test_super_network_and_stock_model_give_the_same_student(supernet, stock, uneven_subnet):
    assert_same_weights(extract_subnet(supernet, uneven_subnet), extract_subnet(stock, uneven_subnet))


def test_whittle_format_holds_a_stock_student_with_equal_logits(supernet, input_ids):
    whittle = extract_subnet(supernet, STOCK_SUBNET, format="whittle")
    stock = extract_subnet(supernet, STOCK_SUBNET, format="stock")
    assert (type(whittle), type(stock)) == (WhittleGPTNeoXForCausalLM, GPTNeoXForCausalLM)
    assert_same_weights(whittle, stock)
    torch.testing.assert_close(logits(whittle, input_ids), logits(stock, input_ids), rtol=0, atol=1e-5)


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


def test_tied_student_stays_tied(make_stock, uneven_subnet):
    student = extract_subnet(make_stock(tie_word_embeddings=True), uneven_subnet)
    assert student.lm_head.weight is student.gpt_neox.embed_in.weight


def test_student_generates_with_the_settings_of_the_super_network(supernet, uneven_subnet):
    source = copy.deepcopy(supernet)
    source.generation_config.max_new_tokens = 7
    student = extract_subnet(source, uneven_subnet)
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config is not source.generation_config


# Padded students


def draw_with_room(seed):
    """Any layer-wise subnet of the tiny model whose heads, 8 channels wide, fit into its hidden size."""
    rng = Random(seed)

    def some(size, most=None):
        return sorted(rng.sample(range(size), rng.randint(1, most or size)))

    blocks = rng.randint(1, 4)
    layers = some(5)
    return SubnetConfig(
        hidden_size=sorted(rng.sample(range(32), 8 * blocks)),
        num_hidden_layers=layers,
        num_attention_heads=[some(4, blocks) for _ in layers],
        intermediate_size=[some(64) for _ in layers],
    )


def padded_and_whittle(model, subnet, **options):
    return [extract_subnet(model, subnet, format=format, **options) for format in ("padded", "whittle")]


def split_padding(padded, whittle):
    """The part of each weight of a padded student that a whittle student has, and the values around it."""
    for name, tensor in padded.state_dict().items():
        held = tuple(slice(size) for size in whittle.state_dict()[name].shape)
        around = torch.ones_like(tensor, dtype=torch.bool)
        around[held] = False
        yield name, tensor[held], tensor[around]


@pytest.mark.parametrize("seed", range(4))
def test_padded_student_has_the_logits_of_the_whittle_one(variant_supernet, input_ids, seed):
    padded, whittle = padded_and_whittle(variant_supernet, draw_with_room(seed))
    mask = torch.ones_like(input_ids)
    mask[1, :5] = 0
    for inputs in ({}, {"attention_mask": mask}):
        with torch.no_grad():
            ours, theirs = (model(input_ids=input_ids, **inputs).logits for model in (padded, whittle))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_padded_student_of_each_architecture_has_the_logits_of_the_whittle_one(each_supernet, input_ids, seed):
    """Padding keeps the channels of a stock subnet, and takes layers' heads and neurons at random."""
    config = each_supernet.config
    room = draw_stock_subnet(config, seed)
    inner = draw_subnet(room.shape, seed + 5, names_optional=False)
    subnet = room.compose(inner.replaced({CHANNELS: room.shape.hidden_size}))
    padded, whittle = padded_and_whittle(each_supernet, subnet, dtype=torch.float64)
    torch.testing.assert_close(logits(padded, input_ids), logits(whittle, input_ids), rtol=0, atol=1e-9)
    assert padded.config.model_type == config.model_type != whittle.config.model_type


def test_padding_of_heads_stays_with_their_queries_keys_and_values(each_supernet, input_ids):
    full = Shape.from_config(each_supernet.config)
    uneven = {d: (full.size(d), *[1] * (full.num_hidden_layers - 1)) for d in full.per_layer}
    subnet = SubnetConfig.full(each_supernet.config).replaced(uneven)
    padded, whittle = padded_and_whittle(each_supernet, subnet, dtype=torch.float64)
    torch.testing.assert_close(logits(padded, input_ids), logits(whittle, input_ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_padded_student_is_the_whittle_one_with_zeros_around(variant_supernet, seed):
    padded, whittle = padded_and_whittle(variant_supernet, draw_with_room(seed))
    for name, held, around in split_padding(padded, whittle):
        assert torch.equal(held, whittle.state_dict()[name]) and not around.any(), name


@pytest.mark.parametrize("seed", range(4))
def test_padded_student_gives_the_same_logits_token_by_token(supernet, input_ids, seed):
    padded, whittle = padded_and_whittle(supernet, draw_with_room(seed), dtype=torch.float64)
    cache, steps = None, []
    with torch.no_grad():
        for token in input_ids.T:
            output = padded(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), logits(whittle, input_ids), rtol=0, atol=1e-9)


def test_padded_student_generates_the_same_tokens(supernet, input_ids):
    padded, whittle = padded_and_whittle(supernet, draw_with_room(0))
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(padded.generate(input_ids, **settings), whittle.generate(input_ids, **settings))


@pytest.mark.parametrize("seed", range(3))
def test_padded_student_has_the_counted_sizes(variant_supernet, seed):
    config, subnet = variant_supernet.config, draw_with_room(seed)
    padded = extract_subnet(variant_supernet, subnet, format="padded")
    shape = padded_shape(config, subnet)
    assert Shape.from_config(padded.config) == shape
    assert shape.hidden_size == subnet.shape.hidden_size == 8 * shape.num_attention_heads[0]
    assert set(shape.intermediate_size) == {max(subnet.shape.intermediate_size)}
    assert num_parameters(config, shape) == sum(parameter.numel() for parameter in padded.parameters())


def test_saved_padded_student_is_a_stock_model(supernet, input_ids, tmp_path):
    padded, whittle = padded_and_whittle(supernet, draw_with_room(1))
    padded.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt_neox" and config["architectures"] == ["GPTNeoXForCausalLM"]
    assert not {"head_dim", "per_layer_config", "auto_map"} & config.keys() and not list(tmp_path.glob("*.py"))
    for model_class in (GPTNeoXForCausalLM, AutoModelForCausalLM):
        loaded = model_class.from_pretrained(tmp_path)
        assert type(loaded) is GPTNeoXForCausalLM
        torch.testing.assert_close(logits(loaded, input_ids), logits(whittle, input_ids), rtol=0, atol=1e-5)


def test_padding_of_what_a_stock_model_holds_adds_nothing(supernet):
    padded, stock = (extract_subnet(supernet, STOCK_SUBNET, format=format) for format in ("padded", "stock"))
    assert padded.config.to_dict() == stock.config.to_dict()
    assert_same_weights(padded, stock)


def train(model, input_ids, steps=5):
    """A few steps of AdamW; in float64, where rounding does not decide which way Adam goes."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("seed", range(2))
def test_padding_stays_zero_in_training_and_the_logits_equal(variant_supernet, input_ids, seed):
    padded, whittle = padded_and_whittle(variant_supernet, draw_with_room(seed), dtype=torch.float64)
    before = logits(whittle, input_ids)
    train(padded, input_ids)
    train(whittle, input_ids)
    assert (logits(whittle, input_ids) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(padded, input_ids), logits(whittle, input_ids), rtol=0, atol=1e-8)
    for name, _, around in split_padding(padded, whittle):
        assert not around.any(), name


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (
            SubnetConfig(16, 2, [1, 3], 40),
            "a padded student of hidden_size=16 cannot have 3 heads or more in every layer: its num_attention_heads "
            "* 8 must be its hidden_size, got 4 and 16; use format='auto'",
        ),
        (
            SubnetConfig(20, 2, [1, 2], 40),
            "a padded student of hidden_size=20 cannot have 2 heads or more in every layer: its num_attention_heads ",
        ),
        (SubnetConfig([*range(7)], 2, 1, 40), "a padded student of hidden_size=7 cannot have 1 heads or more"),
    ],
)
def test_padded_format_refuses_what_it_cannot_hold(supernet, subnet, message):
    with pytest.raises(SubnetError, match=re.escape(message)):
        extract_subnet(supernet, subnet, format="padded")


# Errors


@pytest.mark.parametrize(
    "subnet", [SubnetConfig(24, 2, [3, 2], 40), SubnetConfig(24, 2, 3, [40, 30]), SubnetConfig(24, 2, 2, 40)]
)
def test_stock_format_refuses_what_it_cannot_hold(supernet, subnet):
    message = "GPTNeoXForCausalLM cannot hold this student: its (layers must all be alike|num_attention_heads \\* 8)"
    with pytest.raises(SubnetError, match=message):
        extract_subnet(supernet, subnet, format="stock")


def test_unknown_format_is_an_error(supernet):
    with pytest.raises(SubnetError, match="format must be one of auto, stock, whittle, padded, got 'gguf'"):
        extract_subnet(supernet, STOCK_SUBNET, format="gguf")


def test_subnet_that_does_not_fit_is_an_error(supernet):
    with pytest.raises(SubnetError, match="num_hidden_layers: cannot keep 6 layers, the super-network has 5"):
        extract_subnet(supernet, SubnetConfig(24, 6, 2, 40))


def test_model_of_another_architecture_is_an_error():
    stable = StableLmForCausalLM(StableLmConfig(**{**TINY, "num_hidden_layers": 1}))
    message = "the architecture is 'stablelm'; hf_whittle knows gpt_neox, llama, .* docs/adding-an-architecture.md"
    with pytest.raises(ArchitectureError, match=message):
        extract_subnet(stable, SubnetConfig(24, 1, 3, 40))


# Arguments and folders


def test_folder_above_the_one_named_is_never_removed(stock, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already and is not an empty folder"):
        extract_subnet(stock, STOCK_SUBNET, f"{tmp_path}/new/..")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_working_directory_is_not_replaced(stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="cannot be replaced as a whole; give a folder inside it"):
        extract_subnet(stock, STOCK_SUBNET, ".")


def test_link_to_an_empty_folder_leads_to_the_student(stock, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    extract_subnet(stock, STOCK_SUBNET, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same_weights(GPTNeoXForCausalLM.from_pretrained(tmp_path / "there"), extract_subnet(stock, STOCK_SUBNET))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_may_be_a_name(stock, dtype):
    student = extract_subnet(stock, STOCK_SUBNET, dtype=dtype)
    assert_same_weights(student, extract_subnet(stock, STOCK_SUBNET).bfloat16())
    assert_same_weights(extract_subnet(stock, STOCK_SUBNET, dtype="auto"), extract_subnet(stock, STOCK_SUBNET))


@pytest.mark.parametrize("dtype", ["bfloat", "int8", torch.int8, 16])
def test_dtype_that_is_none_is_an_error(stock, dtype):
    with pytest.raises(SubnetError, match=f"dtype must be a floating-point type .*, got {dtype!r}"):
        extract_subnet(stock, STOCK_SUBNET, dtype=dtype)


@pytest.mark.parametrize("size", [0, -1, "2XB", "5"])
def test_shard_size_that_is_none_is_an_error_before_anything_is_written(stock, tmp_path, size):
    with pytest.raises(ValueError, match=re.escape(f"or like '5GB', got {size!r}")):
        extract_subnet(stock, STOCK_SUBNET, tmp_path / "out", max_shard_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subnet", [STOCK_SUBNET.to_dict(), "subnet.json"], ids=["dict", "path"])
def test_subnet_of_another_type_is_an_error(stock, subnet):
    with pytest.raises(SubnetError, match=r"subnet must be a SubnetConfig, got a .*; make one with"):
        extract_subnet(stock, subnet)


def test_argument_that_is_not_known_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="unknown arguments variant; a checkpoint takes revision, token"):
        extract_subnet(tmp_path, STOCK_SUBNET, variant="fp16")


def test_model_without_its_head_is_an_error(stock):
    with pytest.raises(ArchitectureError, match=r"a GPTNeoXModel has no gpt_neox\.embed_in.* causal language"):
        extract_subnet(stock.gpt_neox, STOCK_SUBNET)


def test_student_does_not_say_that_it_was_loaded_from_none(stock):
    assert extract_subnet(stock, STOCK_SUBNET).name_or_path == ""


def test_healing_arguments_that_do_not_go_together_are_errors(supernet, uneven_subnet, input_ids):
    with pytest.raises(TypeError, match="heal must be a HealingConfig, True or False, got 'yes'"):
        extract_subnet(supernet, uneven_subnet, heal="yes", calibration_dataset=input_ids)
    with pytest.raises(DataError, match="calibration_dataset has no effect without heal"):
        extract_subnet(supernet, uneven_subnet, calibration_dataset=input_ids)


def test_folder_of_a_healed_student_names_its_checkpoint_and_its_healing(teacher_folder, tmp_path):
    blocks = torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(0))
    subnet = SubnetConfig(16, [0, 2, 4], 2, 32)
    folder = extract_subnet(teacher_folder, subnet, tmp_path / "student", heal=True, calibration_dataset=blocks)
    results = json.loads((folder / "results.json").read_text())
    assert results["supernet"] == {"name": teacher_folder.name}
    report = json.loads((folder / "healing.json").read_text())
    assert results["healing"] == {name: report[name] for name in results["healing"]} and results["healing"]
