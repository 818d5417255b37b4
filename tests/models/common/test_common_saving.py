"""Saving, loading, data types, devices and configuration of a student whose layers differ."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)
from uneven_student import (
    CLOSE,
    VOCABULARY,
    anew,
    assert_same_weights,
    first,
    heads_of,
    layers_of,
    names_of,
    norm_of,
)

from hf_whittle.architectures.registry import get_architecture
from hf_whittle.models.students import stock_class

# Saving and loading


def test_reloaded_model_has_the_same_weights_and_outputs(model, input_ids, tmp_path):
    model.save_pretrained(tmp_path)
    reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(reloaded, model)
    torch.testing.assert_close(first(reloaded, input_ids), first(model, input_ids), **CLOSE)


@pytest.mark.parametrize("is_renamed", [False, True], ids=["name in models", "name in files"])
def test_output_matrix_is_saved_in_one_safetensors_file_under_its_name_in_files(student, tmp_path, is_renamed):
    output = get_architecture(student.config).weights[-1]
    in_files = output.file_name or output.name
    name = in_files if is_renamed else output.name
    expected = dict(student.state_dict())
    expected[name] = expected.pop("lm_head.weight")
    student.config.save_pretrained(tmp_path)
    save_file(expected, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").glob("*model*") if path.suffix != ".py"] == ["model.safetensors"]
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    expected[in_files] = expected.pop(name)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_sharded_student_loads_whole(student, input_ids, tmp_path):
    student.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and shards == sorted(set(index["weight_map"].values()))
    assert len(index["weight_map"]) == len(student.state_dict())
    assert index["metadata"]["total_size"] == 4 * student.num_parameters()
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 8000
    torch.testing.assert_close(
        first(AutoModelForCausalLM.from_pretrained(tmp_path), input_ids), first(student, input_ids), **CLOSE
    )


def test_variant_of_the_weights_is_saved_and_loaded_by_its_name(student, input_ids, tmp_path):
    student.save_pretrained(tmp_path, variant="half")
    assert (tmp_path / "model.half.safetensors").exists()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, variant="half")
    torch.testing.assert_close(first(reloaded, input_ids), first(student, input_ids), **CLOSE)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_only_the_main_process_writes(student, tmp_path):
    student.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_given_state_dict_is_saved_in_place_of_the_weights(student, tmp_path):
    other = {name: tensor + 1 for name, tensor in student.state_dict().items()}
    student.save_pretrained(tmp_path, state_dict=dict(other))  # transformers empties it
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, other[name])


def test_pickled_state_dict_loads_strictly(student, input_ids, tmp_path):
    torch.save(student.state_dict(), tmp_path / "weights.pt")
    other = anew(student)
    assert not torch.equal(first(other, input_ids), first(student, input_ids))
    other.load_state_dict(torch.load(tmp_path / "weights.pt"), strict=True)
    torch.testing.assert_close(first(other, input_ids), first(student, input_ids), **CLOSE)


def test_copy_of_a_model_gives_the_same_outputs_from_weights_of_its_own(model, input_ids):
    twin = copy.deepcopy(model)
    expected = first(model, input_ids)
    torch.testing.assert_close(first(twin, input_ids), expected, **CLOSE)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(first(model, input_ids), expected)


def test_missing_weight_is_named_and_drawn_anew(student, saved):
    missing = f"{names_of(student).neurons}.weight"
    tensors = load_file(saved / "model.safetensors")
    del tensors[missing]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert info["missing_keys"] == {missing}
    assert loaded.get_parameter(missing).std().item() == pytest.approx(student.config.initializer_range, rel=0.15)
    kept = f"{names_of(student).norm}.weight"
    assert torch.equal(loaded.get_parameter(kept), student.get_parameter(kept))


def test_unexpected_weight_is_named_and_left_out(student, saved, input_ids):
    tensors = load_file(saved / "model.safetensors") | {
        f"{get_architecture(student.config).layers}.3.extra": torch.ones(2)
    }
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert info["unexpected_keys"] == {f"{get_architecture(student.config).layers}.3.extra"}
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


def test_other_vocabulary_size_is_an_error_unless_mismatched_sizes_are_ignored(student, saved):
    with pytest.raises(RuntimeError, match="You set `ignore_mismatched_sizes` to `False`"):
        AutoModelForCausalLM.from_pretrained(saved, vocab_size=50)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        saved, vocab_size=50, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in info["mismatched_keys"]} == {f"{names_of(student).embedding}.weight", "lm_head.weight"}
    assert loaded.get_input_embeddings().weight.shape == loaded.get_output_embeddings().weight.shape == (50, 22)
    for ours, theirs in zip(layers_of(loaded).parameters(), layers_of(student).parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_backbone_loads_under_a_head(student, input_ids, tmp_path, tied):
    backbone = anew(student, tie_word_embeddings=tied).base_model
    backbone.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(student)
    assert info["missing_keys"] == (set() if tied else {"lm_head.weight"})
    torch.testing.assert_close(first(loaded.base_model, input_ids), first(backbone, input_ids), **CLOSE)


def test_head_stands_on_the_backbone_that_its_prefix_names(student):
    assert get_architecture(student.config).layers.startswith(f"{student.base_model_prefix}.")
    assert student.base_model is student.get_decoder() is getattr(student, student.base_model_prefix)
    assert student.base_model.base_model is student.base_model
    assert student.main_input_name == "input_ids"
    assert student.config.num_hidden_layers == len(layers_of(student)) == 3


# Plans of tensor and pipeline parallelism


def test_student_has_no_plan_which_is_not_an_empty_one(model):
    assert model.config.base_model_tp_plan is model.config.base_model_pp_plan is model.config.base_model_ep_plan is None
    assert type(model)._tp_plan is type(model)._pp_plan is type(model)._ep_plan is None
    assert not model.supports_tp_plan and not model.supports_pp_plan
    assert not model.tp_plan and not model.pp_plan


def test_every_entry_of_the_plan_of_a_super_network_is_a_module_of_it(own_supernet):
    supernet = own_supernet
    names = {re.sub(r"\.\d+", ".*", name) for name, _ in supernet.named_modules()}
    assert supernet.supports_tp_plan and set(supernet.tp_plan) <= names


# Dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_student_loads_in_the_dtype_asked_for(student, saved, dtype):
    expected = copy.deepcopy(student).to(dtype)
    for asked in (dtype, str(dtype).removeprefix("torch.")):
        loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=asked)
        assert loaded.config.dtype == loaded.dtype == dtype
        assert_same_weights(loaded, expected)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
def test_student_loads_in_the_dtype_it_was_saved_in(student, tmp_path, dtype, settings):
    expected = copy.deepcopy(student).to(dtype)
    expected.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path, **settings), expected)


def test_dtype_under_its_old_name_in_the_configuration_is_read(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config.pop("dtype") == "float32"
    config["torch_dtype"] = "bfloat16"
    (saved / "config.json").write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(saved).dtype == torch.bfloat16


def test_rotary_frequencies_are_the_same_in_every_dtype(student, saved):
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    ours, theirs = (dict(each.base_model.rotary_emb.named_buffers()) for each in (loaded, student))
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_modules_kept_in_float32_stay_in_float32(student, saved, monkeypatch):
    norm = names_of(student).norm
    monkeypatch.setattr(type(student), "_keep_in_fp32_modules_strict", {norm})
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {f"{norm}.{name}" for name, _ in norm_of(student).named_parameters()}


def test_model_built_on_the_meta_device_holds_no_memory_and_takes_the_weights(student, input_ids):
    with torch.device("meta"):
        empty = anew(student)
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    empty.load_state_dict(student.state_dict(), assign=True)
    for name, buffer in student.named_buffers():
        module, _, own = name.rpartition(".")
        setattr(empty.get_submodule(module), own, buffer.clone())
    assert torch.equal(first(empty, input_ids), first(student, input_ids))


def test_loading_on_the_meta_device_is_an_error(saved):
    with torch.device("meta"), pytest.raises(RuntimeError, match="with a meta device context manager"):
        AutoModelForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_device_map_places_the_whole_student(student, saved, input_ids, device_map):
    loaded = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
    assert loaded.device == torch.device("cpu")
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


def test_student_with_layers_on_disk_runs_and_is_saved_as_it_is(student, saved, input_ids, tmp_path):
    prefix, names = student.base_model_prefix, names_of(student)
    places = {names.embedding: "cpu", f"{prefix}.layers.0": "cpu", f"{prefix}.rotary_emb": "cpu", "lm_head": "cpu"}
    prefixes = (f"{prefix}.layers.1", f"{prefix}.layers.2", names.norm)
    places |= dict.fromkeys(prefixes, "disk")
    loaded = AutoModelForCausalLM.from_pretrained(saved, device_map=places, offload_folder=tmp_path / "offload")
    on_disk = {name for name, parameter in loaded.named_parameters() if parameter.device.type == "meta"}
    assert on_disk == {name for name in student.state_dict() if name.startswith(prefixes)}
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)
    with pytest.warns(UserWarning, match="Attempting to save a model with offloaded modules"):
        loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), student)


def test_student_that_does_not_fit_in_memory_goes_to_disk_in_whole_layers(student, saved, input_ids, tmp_path):
    budget = student.get_memory_footprint() * 3 // 4
    loaded = AutoModelForCausalLM.from_pretrained(
        saved, device_map="auto", max_memory={"cpu": budget}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    for layer in layers_of(loaded):
        assert len({parameter.device for parameter in layer.parameters()}) == 1
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


# The configuration


def test_configuration_survives_every_way_of_writing_it(student, tmp_path):
    config, kind = copy.deepcopy(student.config), type(student.config)
    config.save_pretrained(tmp_path / "folder" / "sub")  # notes in the configuration where its code is
    config.to_json_file(tmp_path / "plain.json")
    for read in (
        kind.from_dict(config.to_dict()),
        kind(**config.to_diff_dict()),
        kind(**json.loads(config.to_json_string())),
        kind.from_json_file(tmp_path / "plain.json"),
        kind.from_pretrained(tmp_path / "folder", subfolder="sub"),
        copy.deepcopy(config),
    ):
        assert {**read.to_dict(), "_name_or_path": None} == {**config.to_dict(), "_name_or_path": None}
        assert [layer.num_attention_heads for layer in read.per_layer_config] == heads_of(student)
        assert [layer.intermediate_size for layer in read.per_layer_config] == [40, 24, 64]


def test_configuration_without_arguments_is_the_stock_one(student):
    table = get_architecture(student.config)
    ours, stock = type(student.config)().to_dict(), stock_class(table.config_class)().to_dict()
    assert ours["head_dim"] == stock.get("head_dim", stock["hidden_size"] // stock["num_attention_heads"])
    assert (ours.pop("model_type"), stock.pop("model_type")) == (f"whittle_{table.model_type}", table.model_type)
    assert {k: ours[k] for k in stock if k in ours} == stock


def test_sizes_that_differ_by_layer_cannot_be_read_as_if_they_did_not(student):
    assert student.config.is_heterogeneous
    for name in ("num_attention_heads", "intermediate_size"):
        with pytest.raises(RuntimeError, match=f"'{name}' is a per-layer attribute and may vary across layers"):
            getattr(student.config, name)


def test_parameters_are_counted_whole_and_without_embeddings(student):
    norm = sum(parameter.numel() for parameter in norm_of(student).parameters())
    layers = sum(parameter.numel() for parameter in layers_of(student).parameters())
    assert student.num_parameters() == layers + norm + 2 * 22 * VOCABULARY
    assert student.num_parameters(exclude_embeddings=True) == student.num_parameters() - 22 * VOCABULARY
