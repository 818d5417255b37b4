"""A half-done run goes on with the text, the teacher and the store it was begun with, and with nothing else."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from fixtures_run import make_recipe, write_modules
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle.distillation.store.reader import LogitStore
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.errors import OutputError, StoreError
from hf_whittle.fingerprints import checkpoint_fingerprint, model_fingerprint, tokenizer_fingerprint
from hf_whittle.run import run
from hf_whittle.run.fingerprints import INPUTS_FILE, check_inputs, compare, input_fingerprints
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.ledger import Ledger
from hf_whittle.run.preflight import check_teacher
from hf_whittle.run.stages import search
from hf_whittle.run.trainers import Trainers

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.fixture
def make(teacher_folder, tmp_path):
    """A function that makes the recipe of a run in a folder whose name has odd characters."""
    home = tmp_path / "my run [1] é"
    home.mkdir()
    write_modules(home / "texts")
    for name in ("teacher", "net"):
        shutil.copytree(teacher_folder, home / name)

    def recipe(**sections):
        return make_recipe(home / "teacher", home / "texts", home / "out", **sections)

    recipe.home = home
    return recipe


def begin(recipe):
    """Do the search of a run; its facts."""
    inputs, ledger = Inputs(recipe), Ledger(Path(recipe.output_dir))
    check_teacher(inputs)
    check_inputs(ledger.folder, inputs)
    return search(inputs, ledger, progress=False)


def exchange_text(home):
    path = sorted((home / "texts").glob("*.txt"))[3]
    status = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def exchange_weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(folder)


def exchange_tokenizer(folder):
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["merges"].pop()
    path.write_text(json.dumps(rules))


EXCHANGED = {
    "text": (exchange_text, "the text"),
    "teacher": (lambda home: exchange_weights(home / "teacher"), "the teacher .*/teacher"),
    "super-network": (lambda home: exchange_weights(home / "net"), "the super-network .*/net"),
    "a file more": (lambda home: (home / "texts" / "zzz.txt").write_text("more"), "the text"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", EXCHANGED)
def test_a_run_whose_inputs_were_exchanged_is_not_gone_on_with(make, what):
    recipe = make(supernet=str(make.home / "net"))
    begin(recipe)
    exchange, named = EXCHANGED[what]
    exchange(make.home)
    with pytest.raises(OutputError, match=f"inputs have other contents now: {named}; restore them"):
        run(recipe, progress=False)


@pytest.mark.slow
def test_a_run_of_another_tokenizer_is_not_gone_on_with(make):
    recipe = make()
    begin(recipe)
    exchange_tokenizer(make.home / "teacher")
    with pytest.raises(OutputError, match="inputs have other contents now: the tokenizer; restore them"):
        run(recipe, progress=False)


def test_tokenizer_of_a_teacher_apart_is_an_input_too(make):
    inputs = Inputs(make(supernet=str(make.home / "net")))
    found = input_fingerprints(inputs)
    exchange_tokenizer(make.home / "teacher")
    changed = input_fingerprints(Inputs(inputs.recipe))
    assert [name for name in found if found[name] != changed[name]] == ["the teacher's tokenizer"]
    assert "the teacher's tokenizer" not in input_fingerprints(Inputs(make()))
    path, (out, stages) = make.home / "out" / INPUTS_FILE, (make.home / "out", make.home / "out" / "stages")
    stages.mkdir(parents=True)
    (stages / "search.json").write_text("{}")
    for known in (found, {name: value for name, value in found.items() if name != "the teacher's tokenizer"}):
        path.write_text(json.dumps(known))
        compare(out, [found])  # the second as in folders of earlier versions
        assert json.loads(path.read_text()) == found
    with pytest.raises(OutputError, match="inputs have other contents now: the teacher's tokenizer; restore"):
        compare(out, [changed])


@pytest.mark.slow
def test_a_run_whose_inputs_were_copied_and_put_back_goes_on(make):
    recipe = make()
    begin(recipe)
    searched = (make.home / "out" / "candidates.jsonl").read_bytes()
    for name in ("texts", "teacher"):
        shutil.copytree(make.home / name, make.home / "copy")
        shutil.rmtree(make.home / name)
        (make.home / "copy").rename(make.home / name)
    (make.home / "teacher" / "README.md").write_text("a card")
    assert run(recipe, progress=False)["student"]["tokens"] > 0
    assert (make.home / "out" / "candidates.jsonl").read_bytes() == searched


@pytest.mark.slow
def test_inputs_may_change_before_anything_is_done(make):
    check_inputs(make.home / "out", Inputs(make()))
    exchange_text(make.home)
    assert begin(make()).evaluations > 0


@pytest.mark.slow
def test_a_store_of_another_teacher_is_refused(make, tmp_path):
    inputs = Inputs(make())
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        teacher = AutoModelForCausalLM.from_pretrained(make.home / "teacher", dtype=dtype)
        store = store_targets(teacher, inputs.blocks["test"], tmp_path / f"store {number}", progress=False)
        store.check(teacher=inputs.load_teacher())
    exchange_weights(make.home / "teacher")
    changed = Trainers(Inputs(make(teacher_store=str(tmp_path / "store 0"))))
    with pytest.raises(StoreError, match=r"was made with another teacher than .*/teacher, or that one has changed"):
        _ = changed.targets
    assert isinstance(LogitStore(tmp_path / "store 0"), LogitStore)


def test_a_checkpoint_is_told_by_configuration_and_weights_alone(make):
    folder = make.home / "teacher"
    before = checkpoint_fingerprint(folder)
    assert before == checkpoint_fingerprint(make.home / "net")
    (folder / "README.md").write_text("a card")
    (folder / "training_args.bin").write_bytes(b"of a Trainer")
    assert checkpoint_fingerprint(folder) == before
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rotary_emb_base"', '"rotary_base"') + " ")
    assert checkpoint_fingerprint(folder) != before
    (folder / "config.json").write_text(config)
    exchange_weights(folder)
    assert checkpoint_fingerprint(folder) != before


def test_weights_that_the_cache_of_the_hub_tells_by_their_name_are_not_read(make, tmp_path):
    """It names large files by their SHA-256 and small ones by another hash, and links to them."""
    folder, blobs = tmp_path / "models--me--net" / "snapshots" / "1", tmp_path / "models--me--net" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    teacher = make.home / "teacher"
    digest = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
    (blobs / digest).write_text("not to be read")
    (folder / "model.safetensors").symlink_to(blobs / digest)
    shutil.copy(teacher / "config.json", blobs / ("0" * 40))
    (folder / "config.json").symlink_to(blobs / ("0" * 40))
    assert checkpoint_fingerprint(folder) == checkpoint_fingerprint(teacher)


def test_a_model_is_told_by_what_it_holds_beside_its_parameters():
    """As a quantized one does the scales of its weights."""

    def with_scale(value):
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
        model.load_state_dict({name: torch.zeros_like(each) for name, each in model.state_dict().items()})
        before = model_fingerprint(model)
        model.register_buffer("scale", torch.tensor(value))
        return before, model_fingerprint(model)

    plain, one, again, other = (*with_scale(1.0), with_scale(1.0)[1], with_scale(2.0)[1])
    assert one == again and len({plain, one, other}) == 3


def test_a_tokenizer_is_told_by_its_rules_too(make):
    before = tokenizer_fingerprint(AutoTokenizer.from_pretrained(make.home / "teacher"))
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(make.home / "net")) == before
    exchange_tokenizer(make.home / "teacher")
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(make.home / "teacher")) != before
