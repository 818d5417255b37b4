"""Extraction from files gives the student extracted from memory, and reads only weights that it keeps."""

import dataclasses
import filecmp
import json
import logging
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    BARE,
    CLOSE,
    CONFIG,
    INDEX,
    SUBNET,
    WEIGHTS,
    assert_same_files,
    assert_same_student,
    assert_same_weights,
    edit_json,
    extract,
    logits,
    names_in,
    shard_by_layer,
    write_shards,
)
from small_models import draw_stock_subnet, draw_subnet
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from hf_whittle import SubnetConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.errors import CheckpointError, VocabularyError
from hf_whittle.extraction.checkpoint import Checkpoint
from hf_whittle.vocabulary import rank_tokens

# The same student as from memory


def test_student_says_which_checkpoint_it_was_extracted_from(saved, tmp_path):
    results = json.loads((extract(saved, SUBNET, tmp_path / "out") / "results.json").read_text())
    parameters = extract(saved, SUBNET).num_parameters()
    assert results == {"supernet": {"name": saved.name}, "student": {"parameters": parameters}}


@pytest.mark.slow_after(3)
def test_student_from_files_is_that_from_memory_bit_for_bit(kind, space, draw, tmp_path):
    subnet = draw(space, 1)
    expected = extract(AutoModelForCausalLM.from_pretrained(kind[0]), subnet, tmp_path / "from memory")
    for position, folder in enumerate(kind):
        assert_same_files(extract(folder, subnet, tmp_path / f"from files {position}"), expected)


@pytest.mark.slow_after(3)
def test_student_that_is_not_written_is_the_same(kind, uneven_subnet):
    expected = extract(AutoModelForCausalLM.from_pretrained(kind[0]), uneven_subnet)
    for folder in kind:
        assert_same_student(extract(str(folder), uneven_subnet), expected)


@pytest.mark.slow_after(3)
def test_every_kind_of_model_and_a_saved_super_network(any_supernet, tmp_path):
    any_supernet.save_pretrained(tmp_path / "supernet")
    config, stock = any_supernet.config, AutoModelForCausalLM.from_pretrained(tmp_path / "supernet")
    for subnet in (draw_subnet(config, 0, names_optional=True), draw_stock_subnet(config, 1)):
        student = extract(tmp_path / "supernet", subnet)
        assert_same_student(student, extract(stock, subnet))
        is_tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
        assert is_tied == student.config.tie_word_embeddings


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_checkpoint_saved_without_its_head_as_those_of_gpt2_are(make_stock, tmp_path, caplog, model_type):
    stock = make_stock(model_type=model_type, tie_word_embeddings=True)
    stock.base_model.save_pretrained(tmp_path)
    if model_type == "gpt2":  # files of GPT-2 also hold masks
        tensors = load_file(tmp_path / WEIGHTS)
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(5)}
        save_file({**tensors, **masks}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    subnet = draw_subnet(stock.config, 0)
    monitored = logging.getLogger("hf_whittle.models.checkpoint_names")
    monitored.addHandler(caplog.handler)
    assert_same_weights(extract(tmp_path, subnet), extract(stock, subnet))
    monitored.removeHandler(caplog.handler)
    assert "left out" not in caplog.text


def test_every_format_of_each_architecture(each_supernet, input_ids, tmp_path):
    each_supernet.save_pretrained(tmp_path / "supernet")
    subnet = draw_stock_subnet(each_supernet.config, 2)
    found = {}
    for format in ("stock", "whittle", "padded"):
        expected = extract(each_supernet, subnet, tmp_path / f"from memory {format}", format=format)
        written = extract(tmp_path / "supernet", subnet, tmp_path / f"from files {format}", format=format)
        assert_same_files(written, expected)
        found[format] = logits(AutoModelForCausalLM.from_pretrained(written), input_ids)
    for of_format in found.values():
        torch.testing.assert_close(of_format, found["stock"], **CLOSE)


@pytest.mark.parametrize("format", ["auto", "stock", "whittle", "padded"])
def test_every_format(stock, saved, tmp_path, format):
    expected = extract(stock, SUBNET, tmp_path / "from memory", format=format)
    assert_same_files(extract(saved, SUBNET, tmp_path / "from files", format=format), expected)


def test_padded_student_of_uneven_layers(stock, saved, tmp_path):
    subnet = SubnetConfig(24, [0, 2, 4], [[1, 3], 3, 1], [40, [5, 7, 60], 9])
    expected = extract(stock, subnet, tmp_path / "from memory", format="padded")
    assert_same_files(extract(saved, subnet, tmp_path / "from files", format="padded"), expected)


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("seed", range(3))
def test_student_of_a_student_is_that_of_the_composed_subnet(stock, space, draw, draw_within, tmp_path, seed):
    outer = draw(space, seed)
    inner = draw_within(outer.shape, seed)
    first = extract(stock, outer, tmp_path / "first", format="whittle")
    second = extract(first, inner, tmp_path / "second")
    once = extract(stock, outer.compose(inner), tmp_path / "once")
    assert SubnetConfig.from_pretrained(second) == inner
    inner.save_pretrained(once)
    assert_same_files(second, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_that_asked_for(stock, saved, uneven_subnet, tmp_path, dtype):
    student = extract(saved, uneven_subnet, dtype=dtype)
    exact = extract(stock, uneven_subnet).state_dict()
    assert all(torch.equal(tensor, exact[name].to(dtype)) for name, tensor in student.state_dict().items())
    assert student.dtype == student.config.dtype == dtype
    assert_same_student(extract(stock, uneven_subnet, dtype=dtype), student)
    stored = load_file(extract(saved, uneven_subnet, tmp_path / "out", dtype=dtype) / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_student_is_in_evaluation_mode_and_trainable(saved, uneven_subnet):
    student = extract(saved, uneven_subnet)
    assert not any(module.training for module in student.modules())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in student.parameters())


# Files of the student


@pytest.mark.slow
def test_written_student_loads_and_gives_the_same_logits(stock, saved, uneven_subnet, input_ids, tmp_path):
    for subnet, model_class in ((uneven_subnet, WhittleGPTNeoXForCausalLM), (SUBNET, GPTNeoXForCausalLM)):
        reloaded = AutoModelForCausalLM.from_pretrained(extract(saved, subnet, tmp_path / subnet.digest))
        assert type(reloaded) is model_class
        assert_same_weights(reloaded, extract(stock, subnet))
        torch.testing.assert_close(logits(reloaded, input_ids), logits(extract(stock, subnet), input_ids), **CLOSE)


def test_large_student_is_written_in_shards(stock, saved, uneven_subnet, input_ids, tmp_path):
    folder = extract(saved, uneven_subnet, tmp_path / "out", max_shard_size="10KB")
    shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    assert len(shards) > 2 and {path.name for path in folder.glob("*.safetensors")} == shards
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(reloaded, extract(stock, uneven_subnet))
    torch.testing.assert_close(logits(reloaded, input_ids), logits(extract(stock, uneven_subnet), input_ids), **CLOSE)
    inner = SubnetConfig(10, [0, 2], 1, 5)
    assert_same_student(extract(folder, inner), extract(stock, uneven_subnet.compose(inner)))


def test_subnet_is_beside_the_weights(saved, uneven_subnet, tmp_path):
    assert SubnetConfig.from_pretrained(extract(saved, uneven_subnet, tmp_path / "out")) == uneven_subnet


def test_tokenizer_files_are_copied_as_they_are(teacher_folder, tmp_path):
    folder = extract(teacher_folder, SUBNET, tmp_path / "out")
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
    folder = extract(checkpoint, SUBNET, tmp_path / "out")
    assert {name: (folder / name).read_text() for name in names} == {name: f"the {name}" for name in names}
    assert not (folder / "README.md").exists()


def test_tokenizer_of_a_student_has_the_tokens_that_are_kept(teacher_folder, tmp_path):
    whole, text = AutoTokenizer.from_pretrained(teacher_folder), "The quick brown fox\x00 jumps over Ångström"
    kept = tuple(sorted(rank_tokens(whole)[:280]))
    folder = extract(teacher_folder, dataclasses.replace(SUBNET, vocab_size=kept), tmp_path / "out")
    tokenizer, student = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer) == student.config.vocab_size == 280
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert whole.convert_ids_to_tokens([kept[index] for index in ids]) == tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.eos_token_id == student.config.eos_token_id == kept.index(whole.eos_token_id)


def test_kept_tokens_that_make_no_tokenizer_leave_nothing(teacher_folder, tmp_path):
    whole = AutoTokenizer.from_pretrained(teacher_folder)
    letter = whole.convert_tokens_to_ids("e")
    kept = tuple(index for index in range(len(whole)) if index != letter)
    with pytest.raises(VocabularyError, match=r"the kept ids lack 1 of the .* tokens that always stay"):
        extract(teacher_folder, dataclasses.replace(SUBNET, vocab_size=kept), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_student_generates_with_the_settings_of_the_checkpoint(checkpoint, tmp_path):
    edit_json(checkpoint / "generation_config.json", lambda settings: settings.update(max_new_tokens=7))
    assert extract(checkpoint, SUBNET).generation_config.max_new_tokens == 7
    written = json.loads((extract(checkpoint, SUBNET, tmp_path / "out") / "generation_config.json").read_text())
    assert written["max_new_tokens"] == 7


def test_checkpoint_without_generation_settings(checkpoint):
    (checkpoint / "generation_config.json").unlink()
    expected = extract(AutoModelForCausalLM.from_pretrained(checkpoint), SUBNET)
    assert_same_student(extract(checkpoint, SUBNET), expected)


@pytest.mark.parametrize("source", ["memory", "files"])
def test_empty_folder_is_written_to(stock, saved, tmp_path, source):
    (tmp_path / "out").mkdir()
    written = extract(stock if source == "memory" else saved, SUBNET, str(tmp_path / "out"))
    assert written == tmp_path / "out"
    assert names_in(written) == sorted(BARE)
    assert names_in(tmp_path) == ["out"]


# Files and tensors that are read


def test_whole_file_is_read_rather_than_shards_beside_it(checkpoint, stock):
    others = {name: torch.zeros_like(tensor) for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    write_shards(checkpoint, others, shard_by_layer)
    assert_same_student(extract(checkpoint, SUBNET), extract(stock, SUBNET))
    assert_same_student(extract(AutoModelForCausalLM.from_pretrained(checkpoint), SUBNET), extract(stock, SUBNET))


def test_only_shards_that_hold_something_kept_are_opened(sharded, stock):
    for layer in (1, 3):
        (sharded / f"layer-{layer}.safetensors").write_bytes(b"garbage")
    assert_same_student(extract(sharded, SUBNET), extract(stock, SUBNET))
    for layer in (1, 3):
        (sharded / f"layer-{layer}.safetensors").unlink()
    assert_same_student(extract(sharded, SUBNET), extract(stock, SUBNET))


def test_only_shards_that_hold_something_kept_are_downloaded(sharded, monkeypatch):
    import hf_whittle.extraction.checkpoint as module

    asked, find = [], module.find_file

    def recorded(source, name, **options):
        asked.append(name)
        return find(source, name, **options)

    monkeypatch.setattr(module, "find_file", recorded)
    extract(sharded, SUBNET)
    shards = {name for name in asked if re.match("layer|rest", name)}
    assert shards == {"layer-0.safetensors", "layer-2.safetensors", "layer-4.safetensors", "rest.safetensors"}


@pytest.mark.parametrize("is_dtype_stated", [True, False])
def test_every_kept_tensor_is_read_once_and_no_other(checkpoint, monkeypatch, is_dtype_stated):
    """A dtype that the caller gives is not looked up in the files."""
    if not is_dtype_stated:
        edit_json(checkpoint / CONFIG, lambda config: config.pop("dtype"))
    read, get = [], Checkpoint.__getitem__
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: read.append(name) or get(self, name))
    extract(checkpoint, SUBNET, dtype=None if is_dtype_stated else "bfloat16")
    dropped = {name for name in load_file(checkpoint / WEIGHTS) if re.search(r"layers\.[13]\.", name)}
    assert sorted(read) == sorted(load_file(checkpoint / WEIGHTS).keys() - dropped)


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
    assert_same_student(extract("someone/tiny", SUBNET, **options), extract(stock, SUBNET))
    teacher = extract(AutoModelForCausalLM.from_pretrained(teacher_folder), SUBNET)
    for revision in ("step1", "b" * 40):
        assert_same_student(extract("someone/tiny", SUBNET, revision=revision, **options), teacher)
    folder = extract("someone/tiny", SUBNET, tmp_path / "out", revision="step1", **options)
    assert (folder / "tokenizer.json").read_bytes() == (teacher_folder / "tokenizer.json").read_bytes()
    assert not (folder / "tokenizer.json").is_symlink()


def test_shard_that_was_never_downloaded_is_an_error(sharded, tmp_path):
    cache = hub_cache(tmp_path / "cache", [("main", "a" * 40, sharded)])
    next(cache.rglob("layer-2.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"someone/tiny has no file layer-2\.safetensors, which its index names"):
        extract("someone/tiny", SUBNET, cache_dir=cache, local_files_only=True)


def test_revision_that_is_not_there_is_an_error(saved, tmp_path):
    cache = hub_cache(tmp_path / "cache", [("main", "a" * 40, saved)])
    with pytest.raises(CheckpointError, match="cannot read the checkpoint 'someone/tiny': "):
        extract("someone/tiny", SUBNET, cache_dir=cache, local_files_only=True, revision="step2")


def test_checkpoint_in_a_subfolder(saved, stock, tmp_path):
    shutil.copytree(saved, tmp_path / "repository" / "inner")
    assert_same_student(extract(tmp_path / "repository", SUBNET, subfolder="inner"), extract(stock, SUBNET))


# Progress


def test_progress_is_shown_on_stderr(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    extract_subnet(saved, SUBNET)
    shown = capsys.readouterr()
    assert re.search(r"extract: 100%.* 40/40 ", shown.err) and not shown.out


@pytest.mark.parametrize("to_disk", [False, True])
def test_nothing_is_shown_without_progress(saved, tmp_path, capsys, to_disk):
    extract_subnet(saved, SUBNET, tmp_path / "out" if to_disk else None, progress=False)
    assert capsys.readouterr() == ("", "")
