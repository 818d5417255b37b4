"""A store holds the teacher's predictions, finds them by block, and has the same files after any interruption."""

import copy
import shutil
import signal
import sys
from pathlib import Path

import fixtures_stores
import numpy as np
import pytest
import torch
import warm
import yaml
from datasets import Dataset
from fixtures_run import make_recipe, write_modules
from fixtures_stores import BLOCKS, LENGTH, SHARDS, VOCABULARY, contents, make_blocks, make_teacher, store
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hf_whittle.cli import main
from hf_whittle.distillation.store.encodings import Samples, TopK, pack_ids, unpack_ids
from hf_whittle.distillation.store.reader import LogitStore
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.errors import DataError, StoreError, VocabularyError
from hf_whittle.loss.divergences import IGNORED, LossWeights
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets
from hf_whittle.run.inputs import Inputs

SCRIPT = Path(fixtures_stores.__file__)
TEMPERATURE = 0.9


@pytest.fixture(scope="module")
def teacher():
    return make_teacher().eval()


@pytest.fixture(scope="module")
def input_ids():
    return torch.tensor(make_blocks()["input_ids"])


@pytest.fixture(scope="module")
def logits(teacher, input_ids):
    """The teacher's distribution after each token, `(blocks, length, vocabulary)`."""
    with torch.no_grad():
        return teacher(input_ids=input_ids).logits


@pytest.fixture(scope="module")
def probabilities(logits):
    return (logits.double() / TEMPERATURE).softmax(-1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return store(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return store(tmp_path_factory.mktemp("everything"), kind="top-k")


@pytest.fixture
def copied(samples, tmp_path):
    """A copy of the store of samples, to damage."""
    shutil.copytree(samples.folder, tmp_path / "store")
    return tmp_path / "store"


def loss_and_gradient(targets):
    generator = torch.Generator().manual_seed(9)
    student = torch.randn(len(targets), VOCABULARY, generator=generator, requires_grad=True)
    labels = torch.randint(VOCABULARY, (len(targets),), generator=generator)
    labels[::LENGTH] = IGNORED
    loss = fused_distillation_loss(student, None, targets, labels, LossWeights(temperature=TEMPERATURE))
    return loss, torch.autograd.grad(loss.total, student)[0]


# Reading


def test_all_entries_give_the_loss_and_gradient_of_the_teacher(everything, input_ids, logits):
    loss, gradient = loss_and_gradient(everything.targets(input_ids))
    expected, right = loss_and_gradient(DenseTargets(logits.flatten(0, 1)))
    torch.testing.assert_close(loss.divergence, expected.divergence, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-4, atol=0)
    assert (gradient - right).norm() / right.norm() < 1e-3


@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1])
def test_likeliest_entries_and_the_rest_are_those_of_the_teacher(tmp_path, input_ids, probabilities, k):
    targets = store(tmp_path, kind="top-k", k=k).targets(input_ids)
    values, ids = probabilities.flatten(0, 1).topk(k)
    assert targets.tail and targets.entropy is None and torch.equal(targets.ids, ids)
    torch.testing.assert_close(targets.probabilities.double(), values, rtol=5e-3, atol=1e-6)
    rest = 1 - targets.probabilities.double().sum(-1)
    torch.testing.assert_close(rest, 1 - values.sum(-1), rtol=5e-3, atol=1e-6)


def test_k_is_cut_to_the_vocabulary(everything):
    assert everything.settings.encoding == TopK(VOCABULARY, VOCABULARY)


def test_samples_are_drawn_from_the_teachers_distribution(samples, input_ids, probabilities):
    targets = samples.targets(input_ids)
    assert targets.ids.shape == (BLOCKS * LENGTH, 12) and targets.ids.dtype == torch.int64 and not targets.tail
    assert torch.equal(targets.probabilities, torch.full((BLOCKS * LENGTH, 12), 1 / 12))
    entropy = torch.special.entr(probabilities).sum(-1).flatten()
    torch.testing.assert_close(targets.entropy.double(), entropy, rtol=1e-3, atol=0)


def test_frequencies_of_many_draws_are_the_probabilities(tmp_path, probabilities):
    blocks, draws = torch.tensor(make_blocks()["input_ids"])[:2], 20_000
    targets = store(tmp_path, blocks=blocks, draws=draws).targets(blocks)
    counts = torch.zeros(2 * LENGTH, VOCABULARY).scatter_add_(1, targets.ids, torch.ones(targets.ids.shape))
    p = probabilities[:2].flatten(0, 1)
    deviation = (counts - draws * p) / (draws * p * (1 - p)).sqrt()
    assert deviation.abs().max() < 5 and 0.9 < deviation.square().mean() < 1.1


@pytest.mark.slow
def test_gradient_of_samples_is_that_of_the_teacher_on_average(probabilities, logits):
    p, encoding = probabilities[:2].flatten(0, 1).float(), Samples(VOCABULARY)
    rounds, mean, values = 300, 0, []
    for block in range(rounds):
        kept = encoding.encode(p, encoding.numbers(block, len(p)))
        loss, gradient = loss_and_gradient(encoding.decode(kept))
        mean, values = mean + gradient / rounds, [*values, loss.divergence.item()]
    expected, right = loss_and_gradient(DenseTargets(logits[:2].flatten(0, 1)))
    assert (mean - right).norm() / right.norm() < 1.5 * (gradient - right).norm() / right.norm() / rounds**0.5
    assert np.mean(values) == pytest.approx(expected.divergence.item(), rel=0.02)


def test_an_entry_the_teacher_excludes_is_never_drawn():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(1000, -1)
    numbers = torch.linspace(0, 1 - 2**-53, 1000, dtype=torch.float64)[:, None].expand(-1, 12)
    assert set(Samples(5).decode(Samples(5).encode(p, numbers)).ids.flatten().tolist()) == {1, 3}


def test_blocks_are_found_in_any_order_and_number(samples, everything, input_ids):
    order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(1))[:17]
    rows = (order[:, None] * LENGTH + torch.arange(LENGTH)).flatten()
    for each in (samples, everything):
        whole, some = each.targets(input_ids), each.targets(input_ids[order])
        assert torch.equal(some.ids, whole.ids[rows]) and torch.equal(some.probabilities, whole.probabilities[rows])


def test_a_block_that_occurs_twice_is_found(tmp_path):
    blocks = torch.tensor(make_blocks(3)["input_ids"])[[0, 1, 0, 2]]
    targets = store(tmp_path, blocks=blocks, kind="top-k").targets(blocks)
    assert torch.equal(targets.ids[:LENGTH], targets.ids[2 * LENGTH : 3 * LENGTH])


def test_a_model_without_a_plain_output_layer_is_stored_by_its_logits(tmp_path, input_ids):
    teacher = make_teacher()
    forward = teacher.forward

    def capped(**inputs):
        outputs = forward(**inputs)
        outputs.logits = 2 * torch.tanh(outputs.logits / 2)
        return outputs

    teacher.forward = capped
    with torch.no_grad():
        logits = capped(input_ids=input_ids).logits
    targets = store(tmp_path, teacher=teacher, kind="top-k").targets(input_ids)
    torch.testing.assert_close(
        targets.probabilities[:, 0], (logits / TEMPERATURE).softmax(-1).amax(-1).flatten(), rtol=2e-3, atol=0
    )


def test_teacher_is_left_as_it_was(tmp_path):
    teacher = make_teacher().train()
    before = copy.deepcopy(teacher.state_dict())
    store(tmp_path, teacher=teacher)
    assert teacher.training and all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.requires_grad


def test_teacher_is_loaded_by_its_name(tmp_path, samples, input_ids):
    make_teacher().save_pretrained(tmp_path / "teacher")
    by_name = store(tmp_path / "store", teacher=str(tmp_path / "teacher"))
    assert by_name.settings == samples.settings
    found, expected = by_name.targets(input_ids), samples.targets(input_ids)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-3, atol=0)  # stored in 16 bits


# Size on disk


@given(st.data(), st.sampled_from([1, 2, 50, 255, 256, 257, 2048, 50304, 65536, 65537, 151936, 2**20]))
def test_packed_ids_are_unpacked_to_the_same(data, vocab_size):
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 13))
    ids = torch.tensor(
        data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=rows * count, max_size=rows * count))
    )
    encoding = Samples(vocab_size, count)
    packed = pack_ids(ids.view(rows, count), encoding.bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, encoding.bytes_per_token - 2)
    assert torch.equal(unpack_ids(packed, encoding.bits, count), ids.view(rows, count))


@pytest.mark.parametrize("vocab_size", [50, 50304, 65536, 65537])
def test_likeliest_entries_of_any_vocabulary_keep_their_ids(vocab_size):
    logits = torch.zeros(2, vocab_size).index_fill_(1, torch.tensor([0, vocab_size - 1]), 15.0)
    targets = TopK(vocab_size, 2).decode(TopK(vocab_size, 2).encode(logits.softmax(-1), torch.empty(2, 0)))
    assert {tuple(sorted(row)) for row in targets.ids.tolist()} == {(0, vocab_size - 1)}


@pytest.mark.parametrize(
    "encoding, expected",
    [
        (Samples(50304), 26),
        (Samples(65537), 28),
        (Samples(2048), 19),
        (TopK(50304), 4098),
        (TopK(151936), 6146),
    ],
)
def test_bytes_of_a_token(encoding, expected):
    kept = encoding.encode(torch.rand(3, encoding.vocab_size).softmax(-1), encoding.numbers(0, 3))
    assert encoding.bytes_per_token == expected == sum(kept[name].nbytes for name in encoding.tensors) // 3


def test_files_are_as_large_as_said(samples):
    assert samples.bytes_per_token == 11 and samples.tokens == BLOCKS * LENGTH
    stored = [load_file(path) for path in samples.folder.glob("*.safetensors")]
    assert sum(t.nbytes for shard in stored for t in shard.values()) == samples.tokens * 11 + BLOCKS * 16


# Interruptions and processes


def test_default_shards_hold_many_blocks(tmp_path):
    assert store(tmp_path, blocks_per_shard=None).settings.num_shards == 1


@pytest.mark.parametrize("changes", [{"batch_size": 7}, {"blocks_per_shard": 11}, {"blocks": "tensor"}])
def test_draws_depend_neither_on_batches_nor_on_shards_nor_on_the_kind_of_dataset(
    tmp_path, samples, input_ids, changes
):
    if "blocks" in changes:
        changes = {"blocks": input_ids}
    other = store(tmp_path, **changes)
    assert torch.equal(other.targets(input_ids).ids, samples.targets(input_ids).ids)


def test_draws_depend_on_the_seed_and_the_place_of_a_block(tmp_path, samples, input_ids):
    first = samples.targets(input_ids).ids
    seeded = store(tmp_path / "seeded", seed=1).targets(input_ids).ids
    moved = store(tmp_path / "moved", blocks=input_ids.flip(0)).targets(input_ids).ids
    assert not torch.equal(first, seeded) and not torch.equal(first, moved)


def test_a_shard_that_was_removed_or_cut_is_written_again(copied, samples):
    (copied / "shard-00002.safetensors").unlink()
    cut = copied / "shard-00005.safetensors"
    cut.write_bytes(cut.read_bytes()[:-7])
    kept = copied / "shard-00001.safetensors"
    before = kept.stat().st_mtime_ns
    store(copied)
    assert contents(copied) == contents(samples.folder) and kept.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A folder with a store that was killed again and again and one of two processes, and the script's output."""
    folder = tmp_path_factory.mktemp("processes")
    done = warm.run([sys.executable, SCRIPT, folder])
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_files(processes, samples):
    folder, output = processes
    *killed, last = [tuple(map(int, line.split())) for line in output.splitlines()]
    assert last == (SHARDS, 0)
    assert any(status == -signal.SIGKILL and 0 < shards < SHARDS for shards, status in killed)
    assert contents(folder / "killed") == contents(samples.folder)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(processes, samples):
    assert contents(processes[0] / "two") == contents(samples.folder)


# Errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": 2.0}, "temperature is 0.9, not 2.0"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"draws": 3}, "draws is 12, not 3"),
        ({"kind": "top-k"}, "kind is sample, not top-k, k is None, not 50"),
        ({"blocks_per_shard": 4}, "blocks_per_shard is 3, not 4"),
        ({"blocks": make_blocks(seed=6)}, r"holds another store: data is \w+, not \w+; choose another output_dir"),
        ({"blocks": make_blocks().select([1, 0, *range(2, BLOCKS)])}, "data is"),
        ({"blocks": make_blocks(7)}, "blocks is 40, not 7"),
        ({"teacher": make_teacher().half()}, "teacher is"),
    ],
)
def test_a_folder_of_another_store_is_left_alone(copied, samples, changes, message):
    with pytest.raises(StoreError, match=message):
        store(copied, **changes)
    assert contents(copied) == contents(samples.folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids: (ids + 1) % VOCABULARY, "block 0 of the batch is not in the store at .*made from other text"),
        (lambda ids: ids.flatten().roll(1).view(ids.shape), "other packing; run hf-whittle store-logits again"),
        (lambda ids: torch.cat([ids[:3], ids[3:4].flip(1)]), "block 3 of the batch"),
        (lambda ids: ids[:, :-1], r"has blocks of 12 tokens, the batch is \(40, 11\)"),
        (lambda ids: ids[0], r"has blocks of 12 tokens, the batch is \(12,\)"),
    ],
)
def test_blocks_of_other_text_or_packing_are_refused(samples, input_ids, change, message):
    with pytest.raises(StoreError, match=message):
        samples.targets(change(input_ids))


def test_check_says_what_does_not_fit(tmp_path, teacher_folder, samples):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["one more"])
    known = store(tmp_path, tokenizer=tokenizer)
    known.check(temperature=TEMPERATURE, vocab_size=VOCABULARY, tokenizer=tokenizer)
    samples.check(temperature=TEMPERATURE, vocab_size=VOCABULARY + 14, tokenizer=other)
    with pytest.raises(StoreError, match=r"temperature 0.9, the loss has temperature 1.0; train with"):
        known.check(temperature=1.0)
    with pytest.raises(StoreError, match="a vocabulary of 50 entries, the student has 49"):
        known.check(vocab_size=49)
    with pytest.raises(StoreError, match="with a tokenizer of another vocabulary"):
        known.check(tokenizer=other)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def replace_by_other(path):
    save_file(load_file(path), path, metadata={"shard": "of another"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "shard-00004.safetensors is damaged .*; run hf-whittle store-logits again, which writes it anew"),
        (lambda path: path.write_bytes(b""), "shard-00004.safetensors is damaged"),
        (Path.unlink, "shard-00004.safetensors is missing; run hf-whittle store-logits again"),
        (replace_by_other, "shard-00004.safetensors belongs to another store; remove it"),
    ],
)
def test_a_damaged_shard_is_named(copied, damage, message):
    damage(copied / "shard-00004.safetensors")
    with pytest.raises(StoreError, match=message):
        LogitStore(copied)


def test_bytes_that_have_changed_are_noticed_where_they_are_read(copied, input_ids):
    path = copied / "shard-00004.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    damaged = LogitStore(copied)
    damaged.targets(input_ids[:12])
    with pytest.raises(StoreError, match=r"shard-00004.safetensors is damaged \(block \d of it\); remove it"):
        damaged.targets(input_ids)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no store at .*; make one with hf-whittle store-logits"),
        ("{", "store.json is damaged; remove the folder"),
        ("{}", "store.json is damaged"),
        ('{"format": 7}', "has format 7, this version reads format 1"),
    ],
)
def test_a_folder_without_a_store_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        LogitStore(tmp_path)


def test_a_store_that_is_not_finished_is_refused(copied):
    path = copied / "store.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(StoreError, match="is unfinished; run hf-whittle store-logits again, which goes on"):
        LogitStore(copied)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"kind": "all"}, StoreError, "kind must be one of sample, top-k, got 'all'"),
        ({"temperature": 0}, StoreError, "temperature must be a positive number, got 0"),
        ({"draws": 0}, StoreError, "draws must be at least 1"),
        ({"kind": "top-k", "k": 0}, StoreError, "k must be at least 1, got 0"),
        ({"seed": -1}, StoreError, "seed must be an integer from 0"),
        ({"batch_size": 0}, StoreError, "batch_size must be at least 1"),
        ({"blocks_per_shard": 0}, StoreError, "blocks_per_shard must be at least 1"),
        ({"blocks": torch.full((2, 5), VOCABULARY)}, VocabularyError, "the text has token ids from 50 to 50"),
        ({"blocks": Dataset.from_dict({"input_ids": []})}, DataError, "there are no blocks"),
        ({"blocks": Dataset.from_dict({"input_ids": [[1, 2], [1, 2, 3]]})}, DataError, "not all of the same length"),
        ({"blocks": [[1, 2], [3, 4]]}, DataError, "expected a datasets.Dataset or a tensor"),
    ],
)
def test_what_is_out_of_range_is_named_and_nothing_written(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        store(tmp_path, **changes)
    assert contents(tmp_path) == {}


def test_a_sharded_teacher_is_refused(tmp_path):
    teacher = make_teacher()
    teacher.get_input_embeddings().weight.ds_id = 0  # as DeepSpeed marks it
    with pytest.raises(StoreError, match=r"the teacher is sharded over processes.*give it whole"):
        store_targets(teacher, make_blocks(), tmp_path)


def test_a_teacher_whose_logits_are_nan_is_refused(tmp_path):
    teacher = make_teacher()
    torch.nn.init.constant_(teacher.get_input_embeddings().weight[7], torch.inf)
    with pytest.raises(StoreError, match="logits contain NaN or Inf in one of the blocks 0 to 1; load the teacher"):
        store(tmp_path, teacher=teacher, blocks=torch.full((2, LENGTH), 7))


# The command


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, teacher_folder):
    folder = tmp_path_factory.mktemp("recipe")
    recipe = make_recipe(teacher_folder, write_modules(folder / "texts"), folder / "out", training={"temperature": 1.5})
    recipe.save(folder / "recipe.yaml")
    return folder / "recipe.yaml", recipe


@pytest.fixture(scope="module")
def by_command(recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "store"
    arguments = ["--output-dir", str(folder), "--draws", "4", "--seed", "2", "--batch-size", "16"]
    assert main(["store-logits", str(recipe_file[0]), *arguments]) == 0
    return folder


@pytest.mark.slow
def test_command_stores_what_a_recipe_trains_on(recipe_file, by_command, tmp_path):
    recipe, stored = recipe_file[1], LogitStore(by_command)
    assert not Path(recipe.output_dir).exists()
    inputs = Inputs(recipe)
    tokenizer, blocks = inputs.tokenizer, inputs.blocks["train"]
    stored.check(temperature=1.5, vocab_size=300, tokenizer=tokenizer)
    settings = {"temperature": 1.5, "draws": 4, "seed": 2, "batch_size": 16}
    again = store_targets(inputs.load_teacher(), blocks, tmp_path, **settings, tokenizer=tokenizer, progress=False)
    assert contents(stored.folder) == contents(again.folder)


@pytest.mark.slow
def test_command_keeps_the_likeliest_entries(recipe_file, tmp_path, capsys):
    arguments = ["--output-dir", str(tmp_path), "--kind", "top-k", "--k", "16", "--batch-size", "16"]
    assert main(["store-logits", str(recipe_file[0]), *arguments]) == 0
    stored = LogitStore(tmp_path)
    assert stored.settings.encoding == TopK(300, 16)
    assert capsys.readouterr().out == f"{stored.tokens:,} tokens, 66 bytes each, are in {tmp_path}\n"


def test_command_says_in_a_line_what_is_wrong(recipe_file, by_command, tmp_path, capsys):
    path, _ = recipe_file
    assert main(["store-logits", str(path), "--output-dir", str(by_command), "--draws", "3"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hf-whittle: error: ") and "holds another store: draws is 4, not 3, seed is 2" in error
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"teachr": "x"}))
    assert main(["store-logits", str(wrong), "--output-dir", str(by_command)]) == 1
    assert "unknown key 'teachr'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_that_another_process_writes_is_an_error(tmp_path, run_python):
    script = """
        import sys
        from hf_whittle.files.locks import folder_lock
        with folder_lock(sys.argv[1]):
            pass
    """
    teacher, tried = make_teacher(), []

    def during(*_):
        if not tried:
            with pytest.raises(AssertionError, match="is being written by another process"):
                run_python(script, tmp_path / "store")
            tried.append(True)

    teacher.base_model.register_forward_pre_hook(during)
    store(tmp_path / "store", teacher=teacher)
    assert tried and contents(tmp_path / "store").keys() == contents(store(tmp_path / "other").folder).keys()


def test_a_build_for_gpus_reads_on_the_cpu_where_there_is_none(monkeypatch, tmp_path, teacher_folder):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    blocks = torch.randint(300, (2, 8), generator=torch.Generator().manual_seed(0))
    stored = store_targets(str(teacher_folder), blocks, tmp_path / "store", draws=2, progress=False)
    assert stored.tokens == 16
