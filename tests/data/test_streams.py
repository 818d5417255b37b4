"""A stream gives the blocks of the loaded text, and goes on at any block with those that would have followed."""

import bz2
import gzip
import itertools
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi
from transformers import AutoTokenizer

from hf_whittle.data import (
    BlockStream,
    StreamedSource,
    TextEncoder,
    TokenEncoder,
    held_out_blocks,
    load_documents,
    mix_blocks,
    pack_documents,
    pack_rows,
    split_documents,
    stream_documents,
    streams,
)
from hf_whittle.data.streamed_documents import stream_fingerprint
from hf_whittle.errors import DataError, VocabularyError

SIZE = 8
FRACTIONS = {"search": 0.1, "test": 0.2}
TEXTS = [f"document {i} " * (1 + i % 5) for i in range(330)]


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same documents as files of every kind, in four of each."""
    folder = tmp_path_factory.mktemp("kinds")
    for part in range(4):
        rows = Dataset.from_dict({"text": TEXTS[part::4], "name": [f"{part} {i}" for i in range(len(TEXTS[part::4]))]})
        rows.to_json(folder / f"{part}.jsonl")
        rows.to_csv(folder / f"{part}.csv", index=False)
        rows.to_parquet(folder / f"{part}.parquet", batch_size=50)
        (folder / f"{part}.packed.jsonl.gz").write_bytes(gzip.compress((folder / f"{part}.jsonl").read_bytes()))
        (folder / f"{part}.txt.bz2").write_bytes(bz2.compress("\n".join(TEXTS[part::4]).encode()))
        for number, text in enumerate(TEXTS[part::4]):
            (folder / "texts").mkdir(exist_ok=True)
            (folder / "texts" / f"{part} {number:03d}.txt").write_text(text)
    Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    (folder / "data").mkdir()
    Dataset.from_dict({"text": TEXTS}).to_parquet(folder / "data" / "train.parquet")
    return folder


KINDS = {
    "jsonl": {"files": "*.jsonl"},
    "csv": {"files": "*.csv"},
    "parquet": {"files": "*.parquet"},
    "jsonl.gz": {"files": "*.packed.jsonl.gz"},
    "text": {"files": "texts/*.txt"},
    "text and tables": {"files": ["*.txt.bz2", "texts/0*.txt", "1.jsonl", "2.parquet"]},
    "saved": {"dataset": "saved"},
    "folder": {"dataset": "data"},
}


def named(folder, kind):
    """Arguments of `load_documents` and `stream_documents`."""
    found = KINDS[kind].get("files", [])
    files = [str(folder / pattern) for pattern in ([found] if isinstance(found, str) else found)]
    return {"files": files} if files else {"dataset": str(folder / KINDS[kind]["dataset"])}


def source_of(texts, tokenizer, **changes):
    rows = Dataset.from_dict({"text": texts})
    return StreamedSource(lambda: rows.to_iterable_dataset(min(7, len(texts))), TextEncoder(tokenizer), **changes)


def take(stream, number):
    return [block["input_ids"].tolist() for block in itertools.islice(iter(stream), number)]


def rows_of(blocks):
    return np.asarray(blocks["input_ids"]).tolist()


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_the_documents_of_the_loaded_text_and_resumes_at_any(folder, kind):
    expected = load_documents(**named(folder, kind))["text"][:]
    assert [row["text"] for row in stream_documents(**named(folder, kind))] == expected and len(expected) > 1
    for number in {0, len(expected) // 3, len(expected)}:
        stream = stream_documents(**named(folder, kind))
        beginning, rows = stream.state_dict(), iter(stream)
        before = [row["text"] for row in itertools.islice(rows, number)]
        place = json.loads(json.dumps(stream.state_dict()))
        again = stream_documents(**named(folder, kind))
        again.load_state_dict(place)
        assert before + [row["text"] for row in again] == expected
        again.load_state_dict(beginning)
        assert [row["text"] for row in again] == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_blocks_of_a_stream_are_those_of_the_loaded_text(folder, kind, tokenizer):
    splits = split_documents(load_documents(**named(folder, kind)), FRACTIONS)
    whole = {name: pack_documents(split, tokenizer, SIZE) for name, split in splits.items()}
    source = StreamedSource(
        lambda: stream_documents(**named(folder, kind)), TextEncoder(tokenizer), fractions=FRACTIONS
    )
    assert rows_of(BlockStream([source], SIZE).first(10**6)) == rows_of(whole["train"])
    held_out = held_out_blocks(source, {"search": 10**6, "test": 9}, SIZE)
    assert rows_of(held_out["search"]) == rows_of(whole["search"])
    assert rows_of(held_out["test"]) == rows_of(whole["test"])[:9]


def test_held_out_blocks_are_read_no_further_than_needed(tokenizer):
    read = []

    def documents():
        for number, text in enumerate(itertools.cycle(TEXTS)):
            read.append(number)
            yield {"text": f"{number} {text}"}

    source = StreamedSource(
        lambda: IterableDataset.from_generator(documents), TextEncoder(tokenizer), fractions=FRACTIONS
    )
    assert len(held_out_blocks(source, {"search": 5, "test": 5}, SIZE)["test"]) == 5 and len(read) < 500


def test_windows_are_shuffled_by_the_seed_and_the_text_begins_again(tokenizer, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 50)
    stream = BlockStream([source_of(TEXTS[:40], tokenizer)], SIZE)
    once = rows_of(stream.first(1000))
    first, second = take(stream, 150), take(stream, 150)
    assert first == second and first[:50] != once[:50] and sorted(first[:50]) == sorted(once[:50])
    stream.begin(seed=1)
    other = take(stream, 150)
    assert other != first and sorted(other[:50]) == sorted(first[:50])
    tokens = [token for block in once for token in block]
    repeated = [token for row in sorted(take(stream, 3 * len(once))) for token in row]
    assert len(repeated) == 3 * len(tokens) and set(repeated) == set(tokens)


@pytest.mark.parametrize("stop", [0, 1, 49, 50, 51, 130, 333])
def test_a_stream_goes_on_at_the_block_after_an_interruption(tokenizer, monkeypatch, stop):
    monkeypatch.setattr(streams, "WINDOW", 50)
    sources = [source_of(TEXTS[:60], tokenizer, weight=0.7), source_of(TEXTS[60:200], tokenizer, weight=1.9)]
    stream = BlockStream(sources, SIZE)
    stream.begin(seed=3)
    expected = take(stream, 400)
    blocks = iter(stream)
    for _ in range(stop + 5):  # a trainer reads ahead of its training
        next(blocks)
    stream.forget(stop)
    place = json.loads(json.dumps(stream.place_of(stop)))
    again = BlockStream(sources, SIZE)
    again.begin(seed=3, place=place)
    assert take(again, 400 - stop) == expected[stop:]
    assert again.place_of(399)["next"] == 399


@pytest.mark.parametrize("stop", [1, 30, 49, 50, 51, 130, 333])
def test_a_stream_goes_on_after_two_interruptions_in_a_row(tokenizer, monkeypatch, stop):
    monkeypatch.setattr(streams, "WINDOW", 50)
    monkeypatch.setattr(streams, "_ROWS", 10)
    sources = [source_of(TEXTS[:60], tokenizer, weight=0.7), source_of(TEXTS[60:200], tokenizer, weight=1.9)]
    stream = BlockStream(sources, SIZE)
    expected = take(stream, 400)
    for _ in range(2):
        place = json.loads(json.dumps(stream.place_of(stop)))
        stream = BlockStream(sources, SIZE)
        stream.begin(place=place)
        take(stream, 1)
    assert take(stream, 400 - stop) == expected[stop:]


def test_a_stream_that_has_lost_its_text_is_an_error(tokenizer):
    place = {"rest": [], "taken": 0, "documents": source_of(TEXTS, tokenizer).rows().state_dict()}
    emptied = source_of(TEXTS, tokenizer, fractions={"test": 1.0}, name="the files a.txt")
    with pytest.raises(DataError, match=r"the split .train. of the files a\.txt is empty"):
        next(streams.BlockReader(emptied, SIZE, place=place))


def test_going_on_reads_no_more_than_a_shard_and_a_window(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 20)
    source = StreamedSource(lambda: stream_documents(**named(folder, "text")), TextEncoder(tokenizer))
    stream = BlockStream([source], SIZE)
    take(stream, 1000)
    place = stream.place_of(1000)
    encoded = []
    monkeypatch.setattr(
        StreamedSource,
        "encode",
        lambda self, rows, split: encoded.extend(rows) or self.encoder([r["text"] for r in rows]),
    )
    stream.begin(place=place)
    take(stream, 1)
    assert 0 < len(encoded) <= 300


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_gets_its_own_part_of_the_batches_of_one(tokenizer, processes):
    def loader(rank, world, batch):
        stream = BlockStream([source_of(TEXTS, tokenizer)], SIZE)
        plain = torch.utils.data.DataLoader(
            stream, batch_size=batch, collate_fn=lambda rows: [r["input_ids"] for r in rows]
        )
        return prepare_data_loader(plain, num_processes=world, process_index=rank, dispatch_batches=False)

    batches = [itertools.islice(loader(rank, processes, 4), 6) for rank in range(processes)]
    together = [np.concatenate(parts).tolist() for parts in zip(*batches, strict=True)]
    assert together == [np.stack(batch).tolist() for batch in itertools.islice(loader(0, 1, 4 * processes), 6)]


def test_sources_are_mixed_by_weight_streamed_or_not(tokenizer):
    weights, parts = (
        [3.0, 1.0, 0.5],
        [[letter * 30] * number for letter, number in zip("qxz", (60, 200, 90), strict=True)],
    )
    blocks = [pack_documents(Dataset.from_dict({"text": texts}), tokenizer, SIZE) for texts in parts]
    mixed = mix_blocks(blocks, weights)
    assert len(mixed) == sum(map(len, blocks))
    owners = [max("qxz", key=tokenizer.decode(row).count) for row in rows_of(mixed[:450])]
    for number in (9, 45, 450):
        assert [owners[:number].count(letter) for letter in "qxz"] == pytest.approx(
            [number * weight / sum(weights) for weight in weights], abs=1
        )
    sources = [source_of(texts, tokenizer, weight=weight) for texts, weight in zip(parts, weights, strict=True)]
    until_one_ends = int(len(blocks[0]) / weights[0] * sum(weights)) - 5
    stream = BlockStream(sources, SIZE)
    streamed = list(itertools.islice(streams._Mixer(stream, None, repeat=False), until_one_ends))
    assert [block.tolist() for _, block in streamed] == rows_of(mixed[:until_one_ends])
    by_source = [block.tolist() for source in range(3) for own, block in streamed if own == source]
    assert rows_of(stream.first(until_one_ends)) == by_source


def test_a_source_that_ends_leaves_its_share_of_the_first_blocks_to_others(tokenizer):
    sources = [source_of(TEXTS[:3], tokenizer, weight=9.0), source_of(TEXTS[3:200], tokenizer)]
    expected = [rows_of(BlockStream([source], SIZE).first(10**6)) for source in sources]
    assert sorted(rows_of(BlockStream(sources, SIZE).first(10**6))) == sorted(itertools.chain(*expected))


@pytest.mark.slow
def test_packed_ids_are_taken_as_they_are(tokenizer):
    blocks = pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, SIZE)
    rows = Dataset.from_dict({"ids": rows_of(blocks), "other": ["x"] * len(blocks)})
    encoder = TokenEncoder(len(tokenizer), "ids", block_size=SIZE)
    assert rows_of(pack_rows(rows, encoder, SIZE)) == rows_of(blocks)
    source = StreamedSource(rows.to_iterable_dataset, encoder, fractions=FRACTIONS)
    splits = split_documents(rows, FRACTIONS, key="ids")
    assert rows_of(BlockStream([source], SIZE).first(10**6)) == splits["train"]["ids"][:]
    assert rows_of(held_out_blocks(source, {"test": 10**6}, SIZE)["test"]) == splits["test"]["ids"][:]


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
def test_tokenized_documents_are_packed_as_text_is(tokenizer, ends):
    end = [tokenizer.eos_token_id] if ends else []
    ids = [[*tokenizer.encode(text, add_special_tokens=False), *end] for text in TEXTS]
    rows = Dataset.from_dict({"input_ids": [*ids, []]})
    encoder = TokenEncoder(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    expected = rows_of(pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, SIZE))
    assert rows_of(pack_rows(rows, encoder, SIZE)) == expected
    assert rows_of(BlockStream([StreamedSource(rows.to_iterable_dataset, encoder)], SIZE).first(10**6)) == expected


WRONG_IDS = {
    "another length": ([[1] * SIZE, [1] * 5], DataError, f"has 5 token ids, block_size is {SIZE}; set block_size"),
    "above": ([[1] * SIZE, [10] * SIZE], VocabularyError, "ids from 10 to 10 in a row, the vocabulary has 10"),
    "below": ([[1] * SIZE, [-100] * SIZE], VocabularyError, "ids from -100 to -100"),
    "text": (["1 2 3"], DataError, "holds .*string.*, not lists of token ids; name such a column"),
    "fractions": ([[0.5] * SIZE], DataError, "holds .*float.*, not lists of token ids"),
    "empty": ([[1] * SIZE, []], DataError, "is empty|has 0 token ids"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("wrong", WRONG_IDS)
def test_ids_that_are_none_are_an_error(wrong, streamed):
    ids, error, message = WRONG_IDS[wrong]
    rows, encoder = Dataset.from_dict({"input_ids": ids}), TokenEncoder(10, block_size=SIZE)
    if streamed and wrong == "empty":  # passed over
        assert len(BlockStream([StreamedSource(rows.to_iterable_dataset, encoder)], SIZE).first(9)) == 1
        return
    with pytest.raises(error, match=message):
        if streamed:
            BlockStream([StreamedSource(rows.to_iterable_dataset, encoder)], SIZE).first(9)
        else:
            pack_rows(rows, encoder, SIZE)


def test_a_column_of_text_files_cannot_hold_ids(folder):
    for load in (load_documents, stream_documents):
        with pytest.raises(DataError, match=r"is a text file, which has no column 'ids'; give tables \(.jsonl"):
            load(**named(folder, "text"), token_column="ids")


def test_too_little_text_is_an_error(tokenizer):
    short = source_of(["ab"], tokenizer, fractions=FRACTIONS, name="the text of a.jsonl")
    with pytest.raises(DataError, match=r"split 'train' of the text of a.jsonl is empty, or has less than one block"):
        take(BlockStream([short], 64), 1)
    with pytest.raises(DataError, match=r"split 'test' of .*, 1 documents, has 0 tokens, less than one block of 64"):
        held_out_blocks(short, {"test": 1}, 64)


def test_columns_that_are_missing_are_an_error(tokenizer):
    rows = Dataset.from_dict({"content": TEXTS})
    with pytest.raises(DataError, match=r"no column 'text', only \['content'\]"):
        BlockStream([StreamedSource(rows.to_iterable_dataset, TextEncoder(tokenizer))], SIZE).first(1)
    keyed = StreamedSource(rows.to_iterable_dataset, TextEncoder(tokenizer, "content"), key="id", name="mine")
    with pytest.raises(DataError, match=r"mine has no column 'id', only \['content'\]"):
        BlockStream([keyed], SIZE).first(1)


def test_a_row_that_cannot_be_read_names_its_source(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 200)
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"tex')
    source = StreamedSource(
        lambda: stream_documents(files=[f"{tmp_path}/*.jsonl"]), TextEncoder(tokenizer), name="the files a.jsonl"
    )
    with pytest.raises(DataError, match=r"cannot read the files a.jsonl: .*; correct it, or leave it out"):
        BlockStream([source], SIZE).first(10**6)


@pytest.mark.slow
def test_a_stream_of_the_hub_resumes_and_is_told_by_its_commit(hub, tmp_path):
    api = HfApi()
    api.create_repo("me/text", repo_type="dataset")

    def upload(texts):
        for part in range(2):
            Dataset.from_dict({"text": texts[part::2]}).to_json(tmp_path / f"{part}.jsonl")
        return api.upload_folder(folder_path=tmp_path, repo_id="me/text", repo_type="dataset").oid

    commit = upload(TEXTS)
    expected = TEXTS[::2] + TEXTS[1::2]
    stream = stream_documents("me/text")
    before = [row["text"] for row in itertools.islice(iter(stream), 200)]
    again = stream_documents("me/text")
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert before + [row["text"] for row in again] == expected
    first = stream_fingerprint("me/text")
    assert first == stream_fingerprint("me/text") != upload(TEXTS[:50])
    assert stream_fingerprint("me/text") != first == stream_fingerprint("me/text", revision=commit)
    assert [row["text"] for row in stream_documents("me/text", revision=commit)] == expected


def test_a_part_of_a_split_cannot_be_streamed(folder):
    with pytest.raises(DataError, match=r"whole splits, got 'train\[:1%\]'"):
        stream_documents(str(folder / "data"), split="train[:1%]")


def test_workers_of_a_dataloader_are_refused(tokenizer):
    loader = torch.utils.data.DataLoader(BlockStream([source_of(TEXTS, tokenizer)], SIZE), num_workers=1)
    with pytest.raises(DataError, match="reads ahead by itself; set dataloader_num_workers to 0"):
        next(iter(loader))
