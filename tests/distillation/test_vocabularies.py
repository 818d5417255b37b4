"""Students with a part of their teacher's vocabulary."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fixtures_distillation import LENGTH, logged_numbers, make_arguments, make_model
from fixtures_losses import loss_of_trainers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_whittle import DistillationConfig, DistillationTrainer, SubnetConfig, extract_subnet
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.distillation.vocabularies import match_vocabularies
from hf_whittle.errors import StoreError, VocabularyError
from hf_whittle.record.facts import SourceFacts
from hf_whittle.record.lineage import Lineage
from hf_whittle.record.results import Results
from hf_whittle.vocabulary import VocabularyMap, prune_tokenizer, rank_tokens

MERGES = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c"), ("ab", "c"), ("a", "d")]
TOKENS = ["<end>", "a", "b", "c", "d", *("".join(merge) for merge in MERGES)]
KEPT = (0, 1, 2, 3, 4, 5, 8)  # without `cd`, `abcd`, `abc` and `ad`
FIRST = {6: 3, 7: 5, 9: 5, 10: 1}
"""The student's token with which it begins to write each of the dropped ones."""
SIZE = len(TOKENS)


def whole_tokenizer():
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module")
def tokenizers():
    whole = whole_tokenizer()
    return prune_tokenizer(whole, KEPT), whole


def blocks(number=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(len(KEPT), (number, LENGTH), generator=generator)


def make_trainer(folder, ours=None, theirs=None, teacher=None, student=None, **changes):
    others = {name: changes.pop(name) for name in ("vocabulary",) if name in changes}
    data = Dataset.from_dict({"input_ids": blocks().tolist()})
    return DistillationTrainer(
        model=student or make_model(1, vocab_size=len(KEPT)),
        teacher_model=teacher or make_model(2, layers=3, vocab_size=SIZE + 2),  # the last two belong to no token
        args=make_arguments(DistillationConfig, folder, **{"max_steps": 1, **changes}),
        teacher_tokenizer=theirs,
        train_dataset=data,
        eval_dataset=data,
        processing_class=ours,
        **others,
    )


def divergence_by_hand(way, temperature=0.9):
    """Mean KL of the first batch: the teacher reads the student's tokens under its own ids."""
    student, teacher = make_model(1, vocab_size=len(KEPT)).eval(), make_model(2, layers=3, vocab_size=SIZE + 2).eval()
    kept, ids = torch.tensor(KEPT), blocks()[:4]
    with torch.no_grad():
        p = teacher(kept[ids]).logits[:, :-1].double().softmax(-1)
        own = student(ids).logits[:, :-1].double()
    found = p[..., kept].clone()
    if way == "first_piece":
        for dropped, piece in FIRST.items():
            found[..., KEPT.index(piece)] += p[..., dropped]
    target = F.log_softmax(found.log() / temperature, -1)
    return F.kl_div(F.log_softmax(own / temperature, -1), target, log_target=True, reduction="none").sum(-1).mean()


def kl_of(trainer):
    trainer.train()
    return next(row["kl"] for row in trainer.state.log_history if "kl" in row)


def test_first_pieces_are_those_of_the_students_segmentation(tokenizers):
    found = VocabularyMap.between(*tokenizers)
    pieces = [KEPT[piece] for piece in found.first_pieces.tolist()]
    assert dict(zip(found.dropped.tolist(), pieces, strict=True)) == FIRST


@pytest.mark.parametrize("way", ["first_piece", "renormalized"])
def test_the_student_learns_the_restricted_distribution(tmp_path, tokenizers, way):
    expected = divergence_by_hand(way).item()
    ways = {
        "tokenizers": lambda: make_trainer(tmp_path, *tokenizers, dropped_tokens=way),
        "map": lambda: make_trainer(tmp_path, dropped_tokens=way, vocabulary=VocabularyMap.between(*tokenizers)),
    }
    for make in ways.values():
        assert kl_of(trainer := make()) == pytest.approx(expected, rel=1e-4)
        assert Lineage.of(trainer.model).results.student.arguments.dropped_tokens == way


def test_the_two_ways_differ():
    ways = [divergence_by_hand(way).item() for way in ("first_piece", "renormalized")]
    assert ways[0] != pytest.approx(ways[1], rel=0.05)


@pytest.mark.parametrize("way", ["first_piece", "renormalized"])
def test_the_fused_loss_trains_as_the_naive_one(tmp_path, tokenizers, way):
    trained = []
    for loss in ("fused", "naive"):
        trainer = make_trainer(tmp_path, *tokenizers, dropped_tokens=way, max_steps=3, loss_chunk_size=5)
        with loss_of_trainers(loss):
            trainer.train()
        trained.append((trainer.model.state_dict(), logged_numbers(trainer)))
    torch.testing.assert_close(trained[0][1], trained[1][1], rtol=1e-4, atol=1e-5)
    for name, value in trained[0][0].items():
        torch.testing.assert_close(trained[1][0][name], value, rtol=0, atol=1e-5)


def recorded(model, kept, size):
    """A model whose record says that it keeps some tokens of a vocabulary of a size."""
    model.subnet = SimpleNamespace(vocab_size=kept)
    model.lineage = Lineage(results=Results(supernet=SourceFacts(vocab_size=size)))
    return model


def test_the_record_of_a_student_names_its_tokens(tmp_path):
    student = recorded(make_model(1, vocab_size=len(KEPT)), KEPT, SIZE + 2)
    trainer = make_trainer(tmp_path, student=student, dropped_tokens="renormalized")
    assert kl_of(trainer) == pytest.approx(divergence_by_hand("renormalized").item(), rel=1e-4)
    with pytest.raises(VocabularyError, match="'first_piece' needs to know how the student writes tokens"):
        make_trainer(tmp_path, student=student)


def test_records_of_two_students_of_one_model():
    student, teacher = (recorded(make_model(1, vocab_size=len(ids)), ids, 9) for ids in ((0, 4), (0, 3, 4)))
    assert match_vocabularies(student, teacher, None, None, needs_pieces=False).to_teacher.tolist() == [0, 2]
    assert match_vocabularies(teacher, copy.deepcopy(teacher), None, None) is None
    with pytest.raises(VocabularyError, match="keeps 1 tokens that the teacher lacks, first that with id 3"):
        match_vocabularies(teacher, student, None, None)


@pytest.mark.parametrize("source", ["memory", "folder"])
def test_record_of_a_student_of_a_student_is_about_that_one(tmp_path, source):
    whole = make_model(2, vocab_size=SIZE)
    subnet = SubnetConfig.full(whole.config)
    first = extract_subnet(whole, replace(subnet, vocab_size=KEPT))
    if source == "folder":
        extract_subnet(whole, replace(subnet, vocab_size=KEPT), tmp_path / "first")
        extract_subnet(tmp_path / "first", replace(subnet, vocab_size=(0, 2, 6)), tmp_path / "second")
        first, second = map(AutoModelForCausalLM.from_pretrained, (tmp_path / "first", tmp_path / "second"))
    else:
        second = extract_subnet(first, replace(subnet, vocab_size=(0, 2, 6)))
    assert match_vocabularies(first, whole, None, None, needs_pieces=False).to_teacher.tolist() == list(KEPT)
    assert match_vocabularies(second, first, None, None, needs_pieces=False).to_teacher.tolist() == [0, 2, 6]
    with pytest.raises(VocabularyError, match=r"11 entries, the student's 3, kept of 7 others; .* teacher_tokenizer="):
        match_vocabularies(second, whole, None, None, needs_pieces=False)


@pytest.mark.parametrize("size, kept_of", [(8, "8"), (None, "unknown")])
def test_record_of_another_or_an_unknown_model_tells_nothing(size, kept_of):
    student = recorded(make_model(1, vocab_size=3), (0, 3, 4), size)
    for entries in (3, 9):
        with pytest.raises(VocabularyError, match=f"{entries} entries, the student's 3, kept of {kept_of} others"):
            match_vocabularies(student, make_model(2, vocab_size=entries), None, None, needs_pieces=False)


def test_record_of_all_tokens_needs_no_pieces():
    student = recorded(make_model(1, vocab_size=SIZE), SIZE, SIZE)
    assert match_vocabularies(student, make_model(2, vocab_size=SIZE), None, None, needs_pieces=True) is None


def test_tokenizer_of_a_teacher_is_of_the_revision_of_its_weights(hub, teacher_folder, tmp_path):
    whole = AutoTokenizer.from_pretrained(teacher_folder)
    ours = prune_tokenizer(whole, sorted(rank_tokens(whole)[:280]))
    repo = hub.add_repo("someone/base", {path.name: path.read_bytes() for path in teacher_folder.iterdir()})
    changed = json.loads((teacher_folder / "tokenizer.json").read_text())
    changed["model"]["vocab"].pop("".join(changed["model"]["merges"].pop()))
    hub.add_commit(repo, {"tokenizer.json": json.dumps(changed).encode()})
    old = hub.commits("someone/base")[1].oid
    for revision, dropped in ((old, 20), ("main", 19)):
        student, options = make_model(1, vocab_size=280), {"revision": revision}
        trainer = make_trainer(
            tmp_path, ours, student=student, teacher="someone/base", teacher_model_init_kwargs=options
        )
        assert len(trainer._teacher._vocabulary.restriction.dropped) == dropped


@pytest.mark.parametrize("beta", [0.8, 0.0], ids=["distilled", "trained"])
def test_the_teachers_tokenizer_for_the_student_is_an_error(tmp_path, tokenizers, beta):
    with pytest.raises(VocabularyError, match=r"^processing_class has 11 tokens, the model only 7 embeddings"):
        make_trainer(tmp_path, tokenizers[1], tokenizers[1], beta=beta)


def test_models_without_an_entry_for_a_special_token_learn_from_each_other(tmp_path):
    """As for the token for images of the small Gemma 3 models."""
    tokenizer = whole_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    student, teacher = (make_model(seed, vocab_size=SIZE) for seed in (1, 2))
    trainer = make_trainer(tmp_path, tokenizer, tokenizer, teacher, student)
    assert trainer._teacher._vocabulary is None
    assert math.isfinite(trainer.train().training_loss)


def test_an_unknown_way_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dropped_tokens must be one of first_piece, renormalized, got 'ignored'"):
        DistillationConfig(str(tmp_path), dropped_tokens="ignored")


# Stores


@pytest.mark.parametrize("way", ["first_piece", "renormalized"])
def test_a_store_of_all_entries_is_the_teacher(tmp_path, tokenizers, way):
    teacher = make_model(2, layers=3, vocab_size=SIZE + 2)
    given = {"kind": "top-k", "k": SIZE, "tokenizer": tokenizers[0], "progress": False}
    vocabulary = VocabularyMap.between(*tokenizers)
    given |= {"vocabulary": vocabulary, "dropped_tokens": way}
    store = store_targets(teacher, blocks(), tmp_path / "store", **given)
    store.check(teacher=teacher)
    own = {"teacher": store, "dropped_tokens": way}
    trainer = make_trainer(tmp_path, tokenizers[0], vocabulary=vocabulary, **own)
    assert kl_of(trainer) == pytest.approx(divergence_by_hand(way).item(), abs=2e-3)
    other = "renormalized" if way == "first_piece" else "first_piece"
    with pytest.raises(StoreError, match="holds another store: vocabulary is"):
        store_targets(teacher, blocks(), tmp_path / "store", **{**given, "dropped_tokens": other})
    with pytest.raises(StoreError, match=f"made with dropped_tokens='{way}', the training has '{other}'; train with"):
        make_trainer(tmp_path, tokenizers[0], teacher=store, dropped_tokens=other)
    with pytest.raises(StoreError, match="made with another map from the student's tokens to the teacher's"):
        make_trainer(tmp_path, tokenizers[0], vocabulary=VocabularyMap.of_kept(len(KEPT)), **own)
    with pytest.raises(StoreError, match="made with another map from the student's tokens to the teacher's"):
        make_trainer(tmp_path, tokenizers[0], tokenizers[0], **own)
    with pytest.raises(StoreError, match=r"tokenizer of another vocabulary than the student's; .*vocabulary=\.\.\."):
        store.check(tokenizer=tokenizers[1])


def test_a_store_without_pieces_fits_a_map_that_has_them(tmp_path, tokenizers):
    given = {"vocabulary": VocabularyMap.of_kept(KEPT), "dropped_tokens": "renormalized", "progress": False}
    store = store_targets(make_model(2, vocab_size=SIZE), blocks(), tmp_path / "store", **given)
    make_trainer(tmp_path, *tokenizers, teacher=store, dropped_tokens="renormalized")


def test_a_store_of_a_teacher_with_more_padding_has_no_dropped_tokens(tmp_path):
    given = {"vocabulary": VocabularyMap.of_kept(len(KEPT)), "progress": False}
    store = store_targets(make_model(2, vocab_size=len(KEPT) + 2), blocks(), tmp_path / "store", **given)
    for way in ("first_piece", "renormalized"):
        store.check(vocab_size=len(KEPT), vocabulary=VocabularyMap.of_kept(len(KEPT) - 1), dropped_tokens=way)


def test_a_store_of_the_teachers_vocabulary_is_an_error(tmp_path, tokenizers):
    store = store_targets(make_model(2, vocab_size=SIZE), blocks(), tmp_path / "store", progress=False)
    with pytest.raises(StoreError, match=r"of 11 entries, the student has 7; store .*\(vocabulary=\.\.\.\)"):
        make_trainer(tmp_path, tokenizers[0], teacher=store)


# Bits per byte


def test_evaluations_tell_bits_per_byte(tmp_path, tokenizers):
    found = make_trainer(tmp_path, *tokenizers).evaluate()
    labels = blocks()[:, 1:].flatten().tolist()
    size = sum(len(TOKENS[KEPT[label]]) for label in labels if label)  # token 0 is special
    assert found["eval_bits_per_byte"] == pytest.approx(found["eval_loss"] * len(labels) / size / math.log(2))
    trainer = make_trainer(tmp_path, beta=0.0)
    assert "eval_bits_per_byte" not in trainer.evaluate()
