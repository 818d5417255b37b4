"""Extraction that is interrupted, from a damaged checkpoint or to a full disk: an error, and nothing is left."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_checkpoints import CONFIG, INDEX, SUBNET, WEIGHTS, edit_json, extract, names_in
from transformers import PreTrainedModel

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.errors import ArchitectureError, CheckpointError, OutputError, SubnetError
from hf_whittle.extraction.checkpoint import Checkpoint

# Interrupted, or no room


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def _interrupt_after(function):
    def run(*arguments, **options):
        function(*arguments, **options)
        raise KeyboardInterrupt

    return run


@pytest.mark.parametrize(
    ("holder", "name", "function"),
    [
        (Checkpoint, "__getitem__", _interrupt),
        (PreTrainedModel, "save_pretrained", _interrupt_after(PreTrainedModel.save_pretrained)),
        (SubnetConfig, "save_pretrained", _interrupt),
        (shutil, "copyfile", _interrupt),
    ],
    ids=["reading", "weights written", "subnet", "tokenizer"],
)
@pytest.mark.parametrize("was_there", [False, True])
def test_interruption_leaves_nothing(teacher_folder, tmp_path, monkeypatch, holder, name, function, was_there):
    if was_there:
        (tmp_path / "out").mkdir()
    monkeypatch.setattr(holder, name, function)
    with pytest.raises(KeyboardInterrupt):
        extract(teacher_folder, SUBNET, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "out"] if was_there else [])


FULL_DISK = """
import resource, sys
from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    extract_subnet(sys.argv[1], SubnetConfig(24, [0, 2, 4], 3, 40), sys.argv[2], progress=False)
except OutputError as error:
    print(error)
"""


@pytest.mark.slow
def test_disk_without_room_is_an_output_error_and_leaves_nothing(saved, tmp_path, run_warm):
    printed = run_warm(FULL_DISK, saved, tmp_path / "out")
    assert re.search(rf"could not write {tmp_path}/out: File too large\..* free some space", printed)
    assert names_in(tmp_path) == []


# Errors


def damage_in_middle(path, start=8, length=12):
    content = bytearray(path.read_bytes())
    content[start : start + length] = b"\xff" * length
    path.write_bytes(content)


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_truncated_file_is_an_error_that_names_it(checkpoint, size):
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:size])
    message = f"{checkpoint / WEIGHTS} cannot be read, it is truncated or corrupt: "
    with pytest.raises(CheckpointError, match=rf"{re.escape(message)}.*; download it again"):
        extract(checkpoint, SUBNET)


@pytest.mark.parametrize("start", [0, 8])
def test_corrupt_header_is_an_error_that_names_the_file(checkpoint, start):
    damage_in_middle(checkpoint / WEIGHTS, start)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read, it is truncated or corrupt: "):
        extract(checkpoint, SUBNET)


def test_truncated_shard_is_an_error_before_anything_is_written(sharded, tmp_path):
    shard = sharded / "layer-4.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"layer-4\.safetensors cannot be read, it is truncated or corrupt: "):
        extract(sharded, SUBNET, tmp_path / "out")
    assert names_in(tmp_path) == ["sharded"]


def test_shard_that_is_missing_is_an_error(sharded):
    (sharded / "layer-2.safetensors").unlink()
    message = f"{sharded} has no file layer-2.safetensors, which its index names; download it again"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(sharded, SUBNET)


def test_tensor_that_the_index_does_not_name_is_an_error(sharded):
    name = "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(name))
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks the tensor {name}; download it again"):
        extract(sharded, SUBNET)


def test_tensor_that_is_in_another_shard_than_the_index_says_is_an_error(sharded):
    name = "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({name: "rest.safetensors"}))
    message = f"{sharded / 'rest.safetensors'} lacks {name}, which the index says it has"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(sharded, SUBNET)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt_neox.final_layer_norm.bias", "the checkpoint lacks the tensor gpt_neox.final_layer_norm.bias"),
        ("embed_out.weight", "the checkpoint lacks the tensor lm_head.weight or embed_out.weight; download it again"),
    ],
)
def test_missing_tensor_is_an_error_that_names_it(checkpoint, name, message):
    tensors = load_file(checkpoint / WEIGHTS)
    del tensors[name]
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(checkpoint, SUBNET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 40, "num_attention_heads": 5}, "gpt_neox.embed_in.weight has the shape (99, 32), the "),
        ({"vocab_size": 100}, "has the shape (99, 32), the configuration says (100, 32); the checkpoint contradicts"),
        ({"intermediate_size": 48}, "dense_h_to_4h.weight has the shape (64, 32), the configuration says (48, 32)"),
        ({"num_hidden_layers": 6}, "the checkpoint lacks the tensor gpt_neox.layers.5.input_layernorm.weight"),
    ],
)
def test_config_that_contradicts_the_weights_is_an_error(checkpoint, change, message):
    edit_json(checkpoint / CONFIG, lambda config: config.update(change))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(checkpoint, SubnetConfig(24, [0, change.get("num_hidden_layers", 5) - 1], 3, 40))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_attention_heads": 3}, "layers.1.attention.query_key_value.weight has the shape (96, 22), the config"),
        ({"intermediate_size": 25}, "layers.1.mlp.dense_h_to_4h.weight has the shape (24, 22), the configuration says"),
    ],
)
def test_sizes_of_a_layer_that_contradict_its_weights_are_an_error(stock, uneven_subnet, tmp_path, sizes, message):
    student = extract(stock, uneven_subnet, tmp_path / "student")
    edit_json(student / CONFIG, lambda config: config["per_layer_config"]["1"].update(sizes))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(student, SubnetConfig(10, 3, 1, 5))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": null}', '{"weight_map": [1]}', "\udcff"])
def test_broken_index_is_an_error_that_names_it(sharded, text):
    (sharded / INDEX).write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not an index of shards: .*again"):
        extract(sharded, SUBNET)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_an_error_that_says_what_to_do(checkpoint, name):
    (checkpoint / WEIGHTS).rename(checkpoint / name)
    message = f"it has {name}, which is not read because a pickle can run code; load it with AutoModelForCausalLM"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(checkpoint, SUBNET)


def test_folder_without_weights_is_an_error(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    message = f"{checkpoint} must have model.safetensors or model.safetensors.index.json, it has neither; load it with"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(checkpoint, SUBNET)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt_neox", "hidden_size": 33}'])
def test_broken_config_is_an_error(checkpoint, text):
    (checkpoint / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(f"cannot read the checkpoint '{checkpoint}': ")):
        extract(checkpoint, SUBNET)


def test_dtype_that_does_not_exist_is_an_error(checkpoint):
    edit_json(checkpoint / CONFIG, lambda config: config.update(dtype="float33"))
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*float33"):
        extract(checkpoint, SUBNET)


def test_broken_generation_settings_are_an_error(checkpoint):
    (checkpoint / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*generation_config\.json"):
        extract(checkpoint, SUBNET)


@pytest.mark.parametrize("name", ["no such folder", "somebody/nothing", "nothing"])
def test_checkpoint_that_is_not_there_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint '{name}': "):
        extract(name, SUBNET, cache_dir=tmp_path)


@pytest.mark.parametrize("as_type", [str, Path])
def test_folder_that_does_not_exist_is_an_error_that_names_it(tmp_path, as_type):
    message = f"cannot read the checkpoint '{tmp_path / 'nothing'}': there is no such folder"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(as_type(tmp_path / "nothing"), SUBNET)


def test_file_of_weights_is_an_error_that_asks_for_its_folder(saved):
    message = f"cannot read the checkpoint '{saved / WEIGHTS}': it is a file; give the folder it is in"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract(saved / WEIGHTS, SUBNET)


def test_folder_without_a_config_is_an_error(tmp_path):
    with pytest.raises((CheckpointError, ArchitectureError), match=re.escape(str(tmp_path))):
        extract(tmp_path, SUBNET)


def test_another_architecture_is_an_error(checkpoint):
    edit_json(checkpoint / CONFIG, lambda config: config.update(model_type="mamba"))
    with pytest.raises(
        ArchitectureError,
        match=re.escape(f"the architecture of {checkpoint} is 'mamba'; hf_whittle"),
    ):
        extract(checkpoint, SUBNET)


def test_subnet_that_does_not_fit_is_an_error_before_weights_are_looked_for(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(SubnetError, match="num_hidden_layers: cannot keep 6 layers, the super-network has 5"):
        extract(checkpoint, SubnetConfig(24, 6, 2, 40))


def test_format_that_cannot_hold_the_student_is_an_error(saved, tmp_path):
    with pytest.raises(SubnetError, match="GPTNeoXForCausalLM cannot hold this student: its layers must all be alike"):
        extract(saved, SubnetConfig(24, 2, [3, 2], 40), tmp_path / "out", format="stock")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("source", ["memory", "files"])
def test_folder_with_something_in_it_is_an_error_and_stays_as_it_was(stock, saved, tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(OutputError, match=r"out exists already and is not an empty folder; choose another output_dir"):
        extract(stock if source == "memory" else saved, SUBNET, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious" and names_in(tmp_path) == ["out"]


def test_checkpoint_is_not_written_over(checkpoint):
    with pytest.raises(OutputError, match="checkpoint exists already and is not an empty folder"):
        extract(checkpoint, SUBNET, checkpoint)


def test_output_that_is_a_file_is_an_error(saved, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="out exists already and is not an empty folder"):
        extract(saved, SUBNET, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_output_inside_a_file_is_an_error(saved, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match=r"could not write .*file/out: "):
        extract(saved, SUBNET, tmp_path / "file" / "out")


@pytest.mark.parametrize("size", [0, "0.5", "five gigabytes"])
def test_size_of_a_file_that_is_none_is_an_error(saved, tmp_path, size):
    message = f"max_shard_size must be a number of bytes above 0, or like '5GB', got {size!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        extract(saved, SUBNET, tmp_path / "out", max_shard_size=size)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("options", [{"revision": "main"}, {"cache_dir": "x", "token": True}])
def test_options_of_the_hub_do_not_apply_to_a_model_in_memory(stock, options):
    message = f"{', '.join(options)} can only be given with a checkpoint, got a GPTNeoXForCausalLM"
    with pytest.raises(TypeError, match=message):
        extract_subnet(stock, SUBNET, **options)


def test_option_that_does_not_exist_is_an_error(saved):
    with pytest.raises(TypeError, match="unknown arguments color; a checkpoint takes revision"):
        extract_subnet(saved, SUBNET, color="red")
