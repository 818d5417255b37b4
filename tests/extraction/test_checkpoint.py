"""Extraction from files: the student is that from memory, and a damaged checkpoint or a full disk is an error."""

import filecmp
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM, PreTrainedModel

from hf_whittle import SubnetConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.errors import ArchitectureError, CheckpointError, OutputError, SubnetError
from hf_whittle.extraction.checkpoint import Checkpoint

CLOSE = {"rtol": 0, "atol": 1e-5}
SUBNET = SubnetConfig(24, [0, 2, 4], 3, 40)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BARE = (CONFIG, "generation_config.json", WEIGHTS, "subnet.json", "results.json")


# What a checkpoint may look like


def as_saved(tensors, config):
    pass


def new_names(tensors, config):
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")


def leftover_buffers(tensors, config):
    """What attention kept in the files of older releases; Pythia's have it."""
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


@pytest.fixture(scope="module")
def saved(stock, tmp_path_factory):
    """The tiny stock model on disk."""
    folder = tmp_path_factory.mktemp("saved")
    stock.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def sharded(saved, tmp_path):
    """The same in a shard for each layer and one for the rest."""
    folder = shutil.copytree(saved, tmp_path / "sharded")
    write_shards(folder, load_file(folder / WEIGHTS), shard_by_layer)
    (folder / WEIGHTS).unlink()
    return folder


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def kind(request, saved, tmp_path_factory):
    """Every kind of checkpoint, in one file and in shards."""
    parent = tmp_path_factory.mktemp("kind")
    tensors, config = load_file(saved / WEIGHTS), json.loads((saved / CONFIG).read_text())
    request.param(tensors, config)
    folders = [shutil.copytree(saved, parent / layout) for layout in ("one file", "shards")]
    for folder in folders:
        (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folders[0] / WEIGHTS, metadata={"format": "pt"})
    (folders[1] / WEIGHTS).unlink()
    write_shards(folders[1], tensors, shard_by_name)
    return folders


# The same student as from memory


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def cut(source, subnet, output_dir=None, **options):
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
    """All but `results.json`, which names the folder that a student was cut from."""
    names = [set(names_in(folder)) - {"results.json"} for folder in (ours, theirs)]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(ours, theirs, names[0], shallow=False)[1:] == ([], [])


def test_student_says_which_checkpoint_it_was_cut_from(saved, tmp_path):
    results = json.loads((cut(saved, SUBNET, tmp_path / "out") / "results.json").read_text())
    parameters = cut(saved, SUBNET).num_parameters()
    assert results == {"supernet": {"name": saved.name}, "student": {"parameters": parameters}}


def test_student_from_files_is_that_from_memory_bit_for_bit(kind, space, draw, tmp_path):
    subnet = draw(space, 1)
    expected = cut(AutoModelForCausalLM.from_pretrained(kind[0]), subnet, tmp_path / "from memory")
    for position, folder in enumerate(kind):
        assert_same_files(cut(folder, subnet, tmp_path / f"from files {position}"), expected)


def test_student_that_is_not_written_is_the_same(kind, uneven_subnet):
    expected = cut(AutoModelForCausalLM.from_pretrained(kind[0]), uneven_subnet)
    for folder in kind:
        assert_same_student(cut(str(folder), uneven_subnet), expected)


def test_every_kind_of_model_and_a_saved_super_network(variant_supernet, uneven_subnet, tmp_path):
    variant_supernet.save_pretrained(tmp_path / "supernet")
    for subnet in (uneven_subnet, SUBNET):
        student = cut(tmp_path / "supernet", subnet)
        expected = cut(AutoModelForCausalLM.from_pretrained(tmp_path / "supernet"), subnet)
        assert_same_student(student, expected)
        assert (student.lm_head.weight is student.gpt_neox.embed_in.weight) == student.config.tie_word_embeddings


@pytest.mark.parametrize("format", ["auto", "stock", "whittle", "padded"])
def test_every_format(stock, saved, tmp_path, format):
    expected = cut(stock, SUBNET, tmp_path / "from memory", format=format)
    assert_same_files(cut(saved, SUBNET, tmp_path / "from files", format=format), expected)


def test_padded_student_of_uneven_layers(stock, saved, tmp_path):
    subnet = SubnetConfig(24, [0, 2, 4], [[1, 3], 3, 1], [40, [5, 7, 60], 9])
    expected = cut(stock, subnet, tmp_path / "from memory", format="padded")
    assert_same_files(cut(saved, subnet, tmp_path / "from files", format="padded"), expected)


@pytest.mark.parametrize("seed", range(3))
def test_student_of_a_student_is_that_of_the_composed_subnet(stock, space, draw, draw_within, tmp_path, seed):
    outer = draw(space, seed)
    inner = draw_within(outer.shape, seed)
    first = cut(stock, outer, tmp_path / "first", format="whittle")
    second = cut(first, inner, tmp_path / "second")
    once = cut(stock, outer.compose(inner), tmp_path / "once")
    assert SubnetConfig.from_pretrained(second) == inner
    inner.save_pretrained(once)
    assert_same_files(second, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_that_asked_for(stock, saved, uneven_subnet, tmp_path, dtype):
    student = cut(saved, uneven_subnet, dtype=dtype)
    exact = cut(stock, uneven_subnet).state_dict()
    assert all(torch.equal(tensor, exact[name].to(dtype)) for name, tensor in student.state_dict().items())
    assert student.dtype == student.config.dtype == dtype
    assert_same_student(cut(stock, uneven_subnet, dtype=dtype), student)
    stored = load_file(cut(saved, uneven_subnet, tmp_path / "out", dtype=dtype) / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_student_is_in_evaluation_mode_and_trainable(saved, uneven_subnet):
    student = cut(saved, uneven_subnet)
    assert not any(module.training for module in student.modules())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in student.parameters())


# What is written


def test_written_student_loads_and_gives_the_same_logits(stock, saved, uneven_subnet, input_ids, tmp_path):
    for subnet, model_class in ((uneven_subnet, WhittleGPTNeoXForCausalLM), (SUBNET, GPTNeoXForCausalLM)):
        reloaded = AutoModelForCausalLM.from_pretrained(cut(saved, subnet, tmp_path / subnet.digest))
        assert type(reloaded) is model_class
        assert_same_weights(reloaded, cut(stock, subnet))
        torch.testing.assert_close(logits(reloaded, input_ids), logits(cut(stock, subnet), input_ids), **CLOSE)


def test_large_student_is_written_in_shards(stock, saved, uneven_subnet, input_ids, tmp_path):
    folder = cut(saved, uneven_subnet, tmp_path / "out", max_shard_size="10KB")
    shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    assert len(shards) > 2 and {path.name for path in folder.glob("*.safetensors")} == shards
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(reloaded, cut(stock, uneven_subnet))
    torch.testing.assert_close(logits(reloaded, input_ids), logits(cut(stock, uneven_subnet), input_ids), **CLOSE)
    inner = SubnetConfig(10, [0, 2], 1, 5)
    assert_same_student(cut(folder, inner), cut(stock, uneven_subnet.compose(inner)))


def test_subnet_is_beside_the_weights(saved, uneven_subnet, tmp_path):
    assert SubnetConfig.from_pretrained(cut(saved, uneven_subnet, tmp_path / "out")) == uneven_subnet


def test_tokenizer_files_are_copied_as_they_are(teacher_folder, tmp_path):
    folder = cut(teacher_folder, SUBNET, tmp_path / "out")
    tokenizer = {name for name in names_in(teacher_folder) if not name.startswith(("config", "generation", "model"))}
    assert set(names_in(folder)) == {*BARE} | tokenizer
    as_they_are = sorted(tokenizer - {"tokenizer_config.json"})  # which names a class that older versions know
    assert filecmp.cmpfiles(folder, teacher_folder, as_they_are, shallow=False)[0] == as_they_are
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder, teacher_folder))
    assert ours("The quick brown fox").input_ids == theirs("The quick brown fox").input_ids


def test_tokenizer_files_of_every_name_are_copied(checkpoint, tmp_path):
    names = ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"]
    for name in names:
        (checkpoint / name).write_text(f"the {name}")
    (checkpoint / "README.md").write_text("a card of another model")
    folder = cut(checkpoint, SUBNET, tmp_path / "out")
    assert {name: (folder / name).read_text() for name in names} == {name: f"the {name}" for name in names}
    assert not (folder / "README.md").exists()


def test_student_generates_with_the_settings_of_the_checkpoint(checkpoint, tmp_path):
    edit_json(checkpoint / "generation_config.json", lambda settings: settings.update(max_new_tokens=7))
    assert cut(checkpoint, SUBNET).generation_config.max_new_tokens == 7
    written = json.loads((cut(checkpoint, SUBNET, tmp_path / "out") / "generation_config.json").read_text())
    assert written["max_new_tokens"] == 7


def test_checkpoint_without_generation_settings(checkpoint):
    (checkpoint / "generation_config.json").unlink()
    expected = cut(AutoModelForCausalLM.from_pretrained(checkpoint), SUBNET)
    assert_same_student(cut(checkpoint, SUBNET), expected)


@pytest.mark.parametrize("source", ["memory", "files"])
def test_empty_folder_is_written_to(stock, saved, tmp_path, source):
    (tmp_path / "out").mkdir()
    written = cut(stock if source == "memory" else saved, SUBNET, str(tmp_path / "out"))
    assert written == tmp_path / "out"
    assert names_in(written) == sorted(BARE)
    assert names_in(tmp_path) == ["out"]


# What is read


def test_whole_file_is_read_rather_than_shards_beside_it(checkpoint, stock):
    others = {name: torch.zeros_like(tensor) for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    write_shards(checkpoint, others, shard_by_layer)
    assert_same_student(cut(checkpoint, SUBNET), cut(stock, SUBNET))
    assert_same_student(cut(AutoModelForCausalLM.from_pretrained(checkpoint), SUBNET), cut(stock, SUBNET))


def test_only_shards_that_hold_something_kept_are_opened(sharded, stock):
    for layer in (1, 3):
        (sharded / f"layer-{layer}.safetensors").write_bytes(b"garbage")
    assert_same_student(cut(sharded, SUBNET), cut(stock, SUBNET))
    for layer in (1, 3):
        (sharded / f"layer-{layer}.safetensors").unlink()
    assert_same_student(cut(sharded, SUBNET), cut(stock, SUBNET))


def test_only_shards_that_hold_something_kept_are_downloaded(sharded, monkeypatch):
    import hf_whittle.extraction.checkpoint as module

    asked, find = [], module.find_file

    def recorded(source, name, **options):
        asked.append(name)
        return find(source, name, **options)

    monkeypatch.setattr(module, "find_file", recorded)
    cut(sharded, SUBNET)
    shards = {name for name in asked if re.match("layer|rest", name)}
    assert shards == {"layer-0.safetensors", "layer-2.safetensors", "layer-4.safetensors", "rest.safetensors"}


def test_every_kept_tensor_is_read_once_and_no_other(saved, stock, monkeypatch):
    read, get = [], Checkpoint.__getitem__
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: read.append(name) or get(self, name))
    cut(saved, SUBNET)
    dropped = {name for name in load_file(saved / WEIGHTS) if re.search(r"layers\.[13]\.", name)}
    assert sorted(read) == sorted(load_file(saved / WEIGHTS).keys() - dropped)


def hub_cache(folder, revisions):
    """The cache of the Hub with a repository of these revisions, each a name, a commit and a checkpoint's folder."""
    repository = folder / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit, checkpoint in revisions:
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(checkpoint, repository / "snapshots" / commit)
    return folder


def test_name_on_the_hub_is_read_from_the_cache(sharded, stock, teacher_folder, tmp_path):
    cache = hub_cache(tmp_path / "cache", [("main", "a" * 40, sharded), ("step1", "b" * 40, teacher_folder)])
    options = {"cache_dir": cache, "local_files_only": True}
    assert_same_student(cut("someone/tiny", SUBNET, **options), cut(stock, SUBNET))
    teacher = cut(AutoModelForCausalLM.from_pretrained(teacher_folder), SUBNET)
    for revision in ("step1", "b" * 40):
        assert_same_student(cut("someone/tiny", SUBNET, revision=revision, **options), teacher)
    folder = cut("someone/tiny", SUBNET, tmp_path / "out", revision="step1", **options)
    assert (folder / "tokenizer.json").read_bytes() == (teacher_folder / "tokenizer.json").read_bytes()
    assert not (folder / "tokenizer.json").is_symlink()


def test_shard_that_was_never_downloaded_is_an_error(sharded, tmp_path):
    cache = hub_cache(tmp_path / "cache", [("main", "a" * 40, sharded)])
    next(cache.rglob("layer-2.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"someone/tiny has no file layer-2\.safetensors, which its index names"):
        cut("someone/tiny", SUBNET, cache_dir=cache, local_files_only=True)


def test_revision_that_is_not_there_is_an_error(saved, tmp_path):
    cache = hub_cache(tmp_path / "cache", [("main", "a" * 40, saved)])
    with pytest.raises(CheckpointError, match="cannot read the checkpoint 'someone/tiny': "):
        cut("someone/tiny", SUBNET, cache_dir=cache, local_files_only=True, revision="step2")


def test_checkpoint_in_a_subfolder(saved, stock, tmp_path):
    shutil.copytree(saved, tmp_path / "repository" / "inner")
    assert_same_student(cut(tmp_path / "repository", SUBNET, subfolder="inner"), cut(stock, SUBNET))


# Progress


def test_progress_is_shown_on_stderr(saved, capsys):
    extract_subnet(saved, SUBNET)
    shown = capsys.readouterr()
    assert re.search(r"extract: 100%.* 40/40 ", shown.err) and not shown.out


@pytest.mark.parametrize("to_disk", [False, True])
def test_nothing_is_shown_without_progress(saved, tmp_path, capsys, to_disk):
    extract_subnet(saved, SUBNET, tmp_path / "out" if to_disk else None, progress=False)
    assert capsys.readouterr() == ("", "")


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
        cut(teacher_folder, SUBNET, tmp_path / "out")
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
def test_disk_without_room_is_an_output_error_and_leaves_nothing(saved, tmp_path, run_python):
    printed = run_python(FULL_DISK, saved, tmp_path / "out")
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
        cut(checkpoint, SUBNET)


@pytest.mark.parametrize("start", [0, 8])
def test_corrupt_header_is_an_error_that_names_the_file(checkpoint, start):
    damage_in_middle(checkpoint / WEIGHTS, start)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read, it is truncated or corrupt: "):
        cut(checkpoint, SUBNET)


def test_truncated_shard_is_an_error_before_anything_is_written(sharded, tmp_path):
    shard = sharded / "layer-4.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"layer-4\.safetensors cannot be read, it is truncated or corrupt: "):
        cut(sharded, SUBNET, tmp_path / "out")
    assert names_in(tmp_path) == ["sharded"]


def test_shard_that_is_missing_is_an_error(sharded):
    (sharded / "layer-2.safetensors").unlink()
    message = f"{sharded} has no file layer-2.safetensors, which its index names; download it again"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(sharded, SUBNET)


def test_tensor_that_the_index_does_not_name_is_an_error(sharded):
    name = "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(name))
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks the tensor {name}; download it again"):
        cut(sharded, SUBNET)


def test_tensor_that_is_in_another_shard_than_the_index_says_is_an_error(sharded):
    name = "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({name: "rest.safetensors"}))
    message = f"{sharded / 'rest.safetensors'} lacks {name}, which the index says it has"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(sharded, SUBNET)


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
        cut(checkpoint, SUBNET)


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
        cut(checkpoint, SubnetConfig(24, [0, change.get("num_hidden_layers", 5) - 1], 3, 40))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_attention_heads": 3}, "layers.1.attention.query_key_value.weight has the shape (96, 22), the config"),
        ({"intermediate_size": 25}, "layers.1.mlp.dense_h_to_4h.weight has the shape (24, 22), the configuration says"),
    ],
)
def test_sizes_of_a_layer_that_contradict_its_weights_are_an_error(stock, uneven_subnet, tmp_path, sizes, message):
    student = cut(stock, uneven_subnet, tmp_path / "student")
    edit_json(student / CONFIG, lambda config: config["per_layer_config"]["1"].update(sizes))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(student, SubnetConfig(10, 3, 1, 5))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": null}', '{"weight_map": [1]}', "\udcff"])
def test_broken_index_is_an_error_that_names_it(sharded, text):
    (sharded / INDEX).write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not an index of shards: .*again"):
        cut(sharded, SUBNET)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_an_error_that_says_what_to_do(checkpoint, name):
    (checkpoint / WEIGHTS).rename(checkpoint / name)
    message = f"it has {name}, which is not read because a pickle can run code; load it with AutoModelForCausalLM"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(checkpoint, SUBNET)


def test_folder_without_weights_is_an_error(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    message = f"{checkpoint} must have model.safetensors or model.safetensors.index.json, it has neither; load it with"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(checkpoint, SUBNET)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt_neox", "hidden_size": 33}'])
def test_broken_config_is_an_error(checkpoint, text):
    (checkpoint / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(f"cannot read the checkpoint '{checkpoint}': ")):
        cut(checkpoint, SUBNET)


def test_dtype_that_does_not_exist_is_an_error(checkpoint):
    edit_json(checkpoint / CONFIG, lambda config: config.update(dtype="float33"))
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*float33"):
        cut(checkpoint, SUBNET)


def test_broken_generation_settings_are_an_error(checkpoint):
    (checkpoint / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*generation_config\.json"):
        cut(checkpoint, SUBNET)


@pytest.mark.parametrize("name", ["no such folder", "somebody/nothing", "nothing"])
def test_checkpoint_that_is_not_there_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint '{name}': "):
        cut(name, SUBNET, cache_dir=tmp_path)


@pytest.mark.parametrize("as_type", [str, Path])
def test_folder_that_does_not_exist_is_an_error_that_names_it(tmp_path, as_type):
    message = f"cannot read the checkpoint '{tmp_path / 'nothing'}': there is no such folder"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(as_type(tmp_path / "nothing"), SUBNET)


def test_file_of_weights_is_an_error_that_asks_for_its_folder(saved):
    message = f"cannot read the checkpoint '{saved / WEIGHTS}': it is a file; give the folder it is in"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        cut(saved / WEIGHTS, SUBNET)


def test_folder_without_a_config_is_an_error(tmp_path):
    with pytest.raises((CheckpointError, ArchitectureError), match=re.escape(str(tmp_path))):
        cut(tmp_path, SUBNET)


def test_another_architecture_is_an_error(checkpoint):
    edit_json(checkpoint / CONFIG, lambda config: config.update(model_type="llama"))
    with pytest.raises(ArchitectureError, match=re.escape(f"the architecture of {checkpoint} is 'llama'; hf_whittle")):
        cut(checkpoint, SUBNET)


def test_subnet_that_does_not_fit_is_an_error_before_weights_are_looked_for(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(SubnetError, match="num_hidden_layers: cannot keep 6 layers, the super-network has 5"):
        cut(checkpoint, SubnetConfig(24, 6, 2, 40))


def test_format_that_cannot_hold_the_student_is_an_error(saved, tmp_path):
    with pytest.raises(SubnetError, match="stock GPT-NeoX holds only layers that are all alike"):
        cut(saved, SubnetConfig(24, 2, [3, 2], 40), tmp_path / "out", format="stock")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("source", ["memory", "files"])
def test_folder_with_something_in_it_is_an_error_and_stays_as_it_was(stock, saved, tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(OutputError, match=r"out exists already and is not an empty folder; choose another output_dir"):
        cut(stock if source == "memory" else saved, SUBNET, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious" and names_in(tmp_path) == ["out"]


def test_checkpoint_is_not_written_over(checkpoint):
    with pytest.raises(OutputError, match="checkpoint exists already and is not an empty folder"):
        cut(checkpoint, SUBNET, checkpoint)


def test_output_that_is_a_file_is_an_error(saved, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="out exists already and is not an empty folder"):
        cut(saved, SUBNET, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_output_inside_a_file_is_an_error(saved, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match=r"could not write .*file/out: "):
        cut(saved, SUBNET, tmp_path / "file" / "out")


@pytest.mark.parametrize("size", [0, "0.5", "five gigabytes"])
def test_size_of_a_file_that_is_none_is_an_error(saved, tmp_path, size):
    message = f"max_shard_size must be a number of bytes above 0, or like '5GB', got {size!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        cut(saved, SUBNET, tmp_path / "out", max_shard_size=size)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("options", [{"revision": "main"}, {"cache_dir": "x", "token": True}])
def test_options_of_the_hub_do_not_apply_to_a_model_in_memory(stock, options):
    message = f"{', '.join(options)} can only be given with a checkpoint, got a GPTNeoXForCausalLM"
    with pytest.raises(TypeError, match=message):
        extract_subnet(stock, SUBNET, **options)


def test_option_that_does_not_exist_is_an_error(saved):
    with pytest.raises(TypeError, match="colour"):
        extract_subnet(saved, SUBNET, colour="red")
