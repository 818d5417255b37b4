"""Packing equals a plain-Python reference, and the split of a document depends on that document alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from hf_whittle.compat.others import dataset_fingerprint
from hf_whittle.data import STANDARD_LIBRARY, collate_blocks, load_documents, pack_documents, split_documents
from hf_whittle.data.standard_library import HELD_OUT
from hf_whittle.errors import DataError
from hf_whittle.fingerprints import tokenizer_fingerprint

TEXTS = ["def f(x):\n    return x\n", "", "é ü 中文\n", "a" * 70, "import os, sys\n" * 9, None, "the end"]
FRACTIONS = {"search": 0.1, "test": 0.2}


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture
def documents():
    return Dataset.from_dict({"name": [f"document {i}" for i in range(len(TEXTS))], "text": TEXTS})


def stream_of(texts, tokenizer):
    stream = []
    for text in filter(None, texts):
        stream += [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return stream


def cut(stream, size):
    return [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]


def names_of(splits):
    return {name: set(split["name"]) for name, split in splits.items()}


@pytest.mark.parametrize("block_size", [2, 7, 16])
def test_blocks_are_the_documents_end_to_end(documents, tokenizer, block_size):
    blocks = pack_documents(documents, tokenizer, block_size)
    assert np.array_equal(blocks["input_ids"], cut(stream_of(TEXTS, tokenizer), block_size))
    assert blocks.column_names == ["input_ids"]


def test_text_may_be_in_another_column(documents, tokenizer):
    blocks = pack_documents(documents.rename_column("text", "content"), tokenizer, 8, text_column="content")
    assert np.array_equal(blocks["input_ids"], cut(stream_of(TEXTS, tokenizer), 8))


@pytest.mark.slow
def test_blocks_do_not_depend_on_the_number_of_processes(tokenizer):
    documents = Dataset.from_dict({"text": [f"document {i} " * (i % 11) for i in range(300)]})
    one, three = (pack_documents(documents, tokenizer, 32, num_proc=num_proc) for num_proc in (None, 3))
    assert np.array_equal(one["input_ids"], three["input_ids"])


def test_a_tokenizer_that_adds_special_tokens_adds_none_inside(documents, teacher_folder, tokenizer):
    adding = AutoTokenizer.from_pretrained(teacher_folder)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.eos_token} $A", special_tokens=[(tokenizer.eos_token, tokenizer.eos_token_id)]
    )
    assert adding("a")["input_ids"][0] == tokenizer.eos_token_id
    blocks = pack_documents(documents, adding, 8)
    assert np.array_equal(blocks["input_ids"], cut(stream_of(TEXTS, tokenizer), 8))


def test_labels_are_the_inputs_with_every_end_of_text(documents, tokenizer):
    blocks = pack_documents(documents, tokenizer, 16)
    batch = collate_blocks([blocks[i] for i in range(len(blocks))])
    assert batch["labels"].tolist() == cut(stream_of(TEXTS, tokenizer), 16)
    ends = sum(token == tokenizer.eos_token_id for block in cut(stream_of(TEXTS, tokenizer), 16) for token in block)
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == ends > 3 and batch["labels"].dtype == torch.int64
    batch["labels"][0, 0] = -100
    assert batch["input_ids"].tolist() == cut(stream_of(TEXTS, tokenizer), 16)


def test_split_depends_on_each_document_alone():
    keys = [f"package.module{i}" for i in range(400)]
    documents = Dataset.from_dict({"name": keys, "text": [f"text {i}" for i in range(400)]})
    before = names_of(split_documents(documents, FRACTIONS, key="name"))
    kept = set(keys[::2])
    fewer = documents.select(range(0, 400, 2)).shuffle(seed=3)
    after = names_of(split_documents(fewer, FRACTIONS, key="name"))
    assert after == {name: members & kept for name, members in before.items()}
    assert set().union(*before.values()) == set(keys) and sum(map(len, before.values())) == 400


def test_split_is_by_text_without_a_key_column():
    texts = [f"text {i}" for i in range(400)]
    splits = split_documents(Dataset.from_dict({"text": texts}), FRACTIONS)
    turned = split_documents(Dataset.from_dict({"text": texts[::-1]}), FRACTIONS)
    assert {name: set(split["text"]) for name, split in splits.items()} == {
        name: set(split["text"]) for name, split in turned.items()
    }


def test_split_of_known_keys_never_changes():
    documents = Dataset.from_dict({"text": list("abcdefghijklmnop")})
    splits = split_documents(documents, FRACTIONS)
    assert {name: "".join(split["text"]) for name, split in splits.items()} == {
        "search": "djp",
        "test": "bcefn",
        "train": "aghiklmo",
    }


def test_shares_of_the_splits_are_about_right():
    documents = Dataset.from_dict({"text": [str(i) for i in range(5000)]})
    splits = split_documents(documents, FRACTIONS)
    sizes = {name: len(split) / 5000 for name, split in splits.items()}
    assert sizes == pytest.approx({"search": 0.1, "test": 0.2, "train": 0.7}, abs=0.02)


def test_files_are_documents_in_the_order_of_their_paths(tmp_path):
    for name, text in {"b.txt": "second\n\nwith a blank line\n", "a.txt": "first", "c.md": "not text"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.txt").write_text("third")
    documents = load_documents(files=[f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt"])
    assert [text.strip() for text in documents["text"]] == ["first", "second\n\nwith a blank line", "third"]


def test_a_file_is_a_document_however_long(tmp_path):
    text = "".join(f"line {i} of a long file\n" for i in range(500_000))
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "short.txt").write_text("short")
    documents = load_documents(files=[f"{tmp_path}/*.txt"])
    assert [len(document) for document in documents["text"]] == [len(text), 5]


def test_folder_of_data_files_is_a_dataset(tmp_path):
    rows = ['{"content": "one", "id": "x"}', '{"content": "two", "id": "y"}']
    (tmp_path / "part.jsonl").write_text("\n".join(rows) + "\n")
    documents = load_documents(str(tmp_path))
    assert documents["content"][:] == ["one", "two"] and documents["id"][:] == ["x", "y"]


def test_folder_of_a_saved_dataset_is_one(tmp_path, documents):
    documents.save_to_disk(tmp_path / "saved")
    assert load_documents(str(tmp_path / "saved")).to_dict() == documents.to_dict()


@pytest.mark.slow
def test_standard_library_has_unique_names_and_no_tests():
    documents = load_documents(STANDARD_LIBRARY)
    names = documents["name"][:]
    assert len(set(names)) == len(names) > 300 and names == sorted(names)
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.split("."))]
    assert {"json.decoder", "argparse", "asyncio.events"} <= set(names)
    json_decoder = documents[names.index("json.decoder")]["text"]
    assert "class JSONDecoder" in json_decoder


@pytest.mark.slow
def test_held_out_modules_of_the_standard_library_are_stable():
    documents = load_documents(STANDARD_LIBRARY)
    before = names_of(split_documents(documents, HELD_OUT, key="name"))
    after = names_of(split_documents(documents.shuffle(seed=1), HELD_OUT, key="name"))
    assert before == after
    assert {name: len(members) / len(documents) for name, members in before.items()} == pytest.approx(
        {"search": 0.05, "test": 0.05, "train": 0.9}, abs=0.03
    )


NOTHING = {"empty": [""] * 250, "missing": [None] * 250, "both": ["", None] * 120}


@pytest.mark.parametrize("where", ["before", "after", "between"])
@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("streamed", [False, True])
def test_documents_without_text_change_nothing(tokenizer, nothing, where, streamed):
    texts = {"before": nothing + TEXTS, "after": TEXTS + nothing, "between": TEXTS[:3] + nothing + TEXTS[3:]}[where]
    documents = Dataset.from_dict({"text": texts})
    blocks = pack_documents(documents.to_iterable_dataset() if streamed else documents, tokenizer, 8)
    assert [list(block["input_ids"]) for block in blocks] == cut(stream_of(TEXTS, tokenizer), 8)


def test_a_stream_of_unknown_columns_may_begin_without_text(tokenizer):
    texts = [None] * 20 + TEXTS
    documents = IterableDataset.from_generator(lambda: ({"text": text} for text in texts))
    blocks = pack_documents(documents, tokenizer, 8)
    assert [list(block["input_ids"]) for block in blocks] == cut(stream_of(TEXTS, tokenizer), 8)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
def test_only_documents_without_text_are_an_error(tokenizer, nothing, streamed):
    documents = Dataset.from_dict({"text": nothing})
    with pytest.raises(DataError, match=r"give .*less than one block of 8"):
        pack_documents(documents.to_iterable_dataset() if streamed else documents, tokenizer, 8)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_column_that_is_no_text_is_an_error(tokenizer, streamed):
    documents = Dataset.from_dict({"text": [1, 2, 3]})
    with pytest.raises(DataError, match="the column 'text' holds int64, not text; name a column of text"):
        pack_documents(documents.to_iterable_dataset() if streamed else documents, tokenizer, 2)


def test_blocks_are_those_of_the_tokenizer_as_it_is_now(documents, teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path, dirs_exist_ok=True)
    before = AutoTokenizer.from_pretrained(tmp_path)
    pack_documents(documents, before, 8)
    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    now = AutoTokenizer.from_pretrained(tmp_path)
    assert stream_of(TEXTS, now) != stream_of(TEXTS, before) and now.get_vocab() == before.get_vocab()
    assert np.array_equal(pack_documents(documents, now, 8)["input_ids"], cut(stream_of(TEXTS, now), 8))


def test_blocks_are_cached_whatever_a_tokenizer_was_called_with(documents, teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    first = pack_documents(documents, tokenizer, 8)
    tokenizer(["a", "b c"], max_length=1, truncation=True)
    again = pack_documents(documents, AutoTokenizer.from_pretrained(teacher_folder), 8)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(AutoTokenizer.from_pretrained(teacher_folder))
    assert dataset_fingerprint(first) == dataset_fingerprint(again)


def test_no_document_is_an_error(tokenizer):
    with pytest.raises(DataError, match="the dataset has no documents"):
        pack_documents(Dataset.from_dict({"text": []}), tokenizer, 8)


def test_too_little_text_is_an_error(tokenizer):
    tokens = len(tokenizer.encode("ab")) + 1
    with pytest.raises(DataError, match=f"1 documents give {tokens} tokens, less than one block of 512"):
        pack_documents(Dataset.from_dict({"text": ["ab"]}), tokenizer, 512)


def test_a_block_of_one_token_is_an_error(documents, tokenizer):
    with pytest.raises(DataError, match="at least 2 tokens to predict one, got block_size=1"):
        pack_documents(documents, tokenizer, 1)


def test_a_missing_text_column_is_an_error(documents, tokenizer):
    with pytest.raises(DataError, match=r"no column 'content', only \['name', 'text'\]"):
        pack_documents(documents, tokenizer, 8, text_column="content")


def test_a_missing_key_column_is_an_error(documents):
    with pytest.raises(DataError, match=r"no column 'id', only \['name', 'text'\]"):
        split_documents(documents, FRACTIONS, key="id")


def test_a_tokenizer_without_end_of_text_is_an_error(documents, teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"no end-of-text token.*set tokenizer\.eos_token"):
        pack_documents(documents, tokenizer, 8)


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.5}, {"a": 0.0}, {"a": -0.1}, {"train": 0.5}])
def test_impossible_fractions_are_an_error(documents, fractions):
    with pytest.raises(DataError, match="held-out fractions must be positive, add up to less than 1"):
        split_documents(documents, fractions)


def test_an_empty_split_is_an_error(documents):
    with pytest.raises(DataError, match="the split 'search' of 7 documents is empty; give more documents"):
        split_documents(documents, {"search": 1e-9}, key="name")


def test_no_file_that_matches_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no file matches '.*nothing\*\.txt'"):
        load_documents(files=[f"{tmp_path}/nothing*.txt"])


def test_no_source_is_an_error():
    with pytest.raises(DataError, match="no text was named"):
        load_documents()


def test_a_missing_split_is_an_error(tmp_path):
    (tmp_path / "part.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match="cannot load the split 'validation' of the dataset"):
        load_documents(str(tmp_path), split="validation")


def test_a_missing_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot load the split 'train' of the dataset '.*nowhere'"):
        load_documents(str(tmp_path / "nowhere"))


def test_a_dataset_missing_on_the_hub_is_an_error():
    with pytest.raises(DataError, match="cannot load the split 'train' of the dataset 'someone/something'"):
        load_documents("someone/something")
