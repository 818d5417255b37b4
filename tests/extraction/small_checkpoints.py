"""Kinds of checkpoints, and comparisons of students extracted from them."""

import filecmp
import json
import re

import torch
from safetensors.torch import save_file

from hf_whittle import SubnetConfig, extract_subnet

CLOSE = {"rtol": 0, "atol": 1e-5}
SUBNET = SubnetConfig(24, [0, 2, 4], 3, 40)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BARE = (CONFIG, "generation_config.json", WEIGHTS, "subnet.json", "results.json")


# Kinds of checkpoints


def as_saved(tensors, config):
    pass


def new_names(tensors, config):
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")


def leftover_buffers(tensors, config):
    """Add buffers that attention had in files of older releases, such as Pythia's."""
    for layer in range(5):
        attention = f"gpt_neox.layers.{layer}.attention."
        tensors[attention + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[attention + "masked_bias"] = torch.tensor(-1e9)
        tensors[attention + "rotary_emb.inv_freq"] = torch.rand(1)


def in_dtype(dtype):
    def change(tensors, config):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        config["dtype"] = str(dtype).removeprefix("torch.")

    return change


def loaded_in_another_dtype(tensors, config):
    config["dtype"] = "bfloat16"


def dtype_unstated(tensors, config):
    leftover_buffers(tensors, config)
    in_dtype(torch.bfloat16)(tensors, config)
    del config["dtype"]


def dtype_under_its_old_name(tensors, config):
    in_dtype(torch.float16)(tensors, config)
    config["torch_dtype"] = config.pop("dtype")


KINDS = {
    "as saved": as_saved,
    "new names": new_names,
    "leftover buffers": leftover_buffers,
    "fp16": in_dtype(torch.float16),
    "bf16": in_dtype(torch.bfloat16),
    "loaded in another dtype": loaded_in_another_dtype,
    "dtype unstated": dtype_unstated,
    "dtype under its old name": dtype_under_its_old_name,
}


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def write_shards(folder, tensors, shard_of):
    """Write tensors into the shards that `shard_of` names, with an index that is in no particular order."""
    shards = {}
    for name, tensor in tensors.items():
        shards.setdefault(shard_of(name), {})[name] = tensor
    for shard, held in shards.items():
        save_file(held, folder / shard, metadata={"format": "pt"})
    names = sorted(tensors, key=lambda name: (".attention.bias" not in name, name[::-1]))
    index = {"metadata": {}, "weight_map": {name: shard_of(name) for name in names}}
    (folder / INDEX).write_text(json.dumps(index))


def shard_by_name(name):
    return f"shard-{len(name) % 4}.safetensors"


def shard_by_layer(name):
    found = re.search(r"layers\.(\d+)", name)
    return f"layer-{found[1]}.safetensors" if found else "rest.safetensors"


# Comparisons


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def extract(source, subnet, output_dir=None, **options):
    return extract_subnet(source, subnet, output_dir, progress=False, **options)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_student(ours, theirs):
    assert type(ours) is type(theirs)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert_same_weights(ours, theirs)


def assert_same_weights(ours, theirs):
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(ours.state_dict()[name], tensor), name


def assert_same_files(ours, theirs):
    """Assert equal files but for `results.json`, which names the folder that a student was extracted from."""
    names = [set(names_in(folder)) - {"results.json"} for folder in (ours, theirs)]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(ours, theirs, names[0], shallow=False)[1:] == ([], [])
