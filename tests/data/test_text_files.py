"""Files are found under any path, read in any format, and never mistaken for others."""

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import os
import time
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import hf_whittle
from hf_whittle.compat.others import dataset_fingerprint
from hf_whittle.data import documents_fingerprint, load_documents, pack_documents
from hf_whittle.data.text_files import documents_from_files, files_digest
from hf_whittle.errors import DataError

ODD_FOLDERS = ["plain", "with space", "brackets [1]", "[a-z]*?", "{x}!", "日本 é", "~tilde"]


def texts(**load):
    return load_documents(**load)["text"][:]


def write_as_before(path, text, moment=1_700_000_000):
    """Write a file whose modification time is always the same."""
    path.write_text(text)
    os.utime(path, (moment, moment))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_files_of_two_projects_with_the_same_layout_are_not_confused(tmp_path, monkeypatch, name):
    read = {}
    for project, word in {"one": "first", "two": "other"}.items():
        (tmp_path / project / "texts").mkdir(parents=True)
        line = {"txt": word, "jsonl": json.dumps({"text": word}), "csv": f"text\n{word}"}[name.split(".")[1]]
        write_as_before(tmp_path / project / "texts" / name, line)
        monkeypatch.chdir(tmp_path / project)
        read[project] = texts(files=[f"texts/{name}"])
    assert read == {"one": ["first"], "two": ["other"]}


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".csv", ".json"])
def test_a_file_edited_within_one_timestamp_is_read_anew(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for word in ("first", "other"):
        line = {".jsonl": json.dumps({"text": word}), ".json": json.dumps([{"text": word}]), ".csv": f"text\n{word}"}
        data = line.get(suffix.removesuffix(".gz"), word).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert texts(files=[path]) == [word]


def test_a_folder_of_data_files_edited_within_one_timestamp_is_read_anew(tmp_path):
    fingerprints = set()
    for word in ("first", "other"):
        write_as_before(tmp_path / "part.jsonl", json.dumps({"text": word}))
        documents = load_documents(str(tmp_path))
        assert documents["text"][:] == [word]
        fingerprints.add(documents_fingerprint(None, str(tmp_path)))
    assert len(fingerprints) == 2


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(Path(hf_whittle.__file__).parent / "demo" / "teacher")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_blocks_of_text_beside_a_table_edited_within_one_timestamp_are_made_anew(tmp_path, tokenizer, suffix):
    (tmp_path / "a.txt").write_text("hello world " * 20)
    packed = []
    for word in ("first", "other"):
        row = f"{word} " * 20
        write_as_before(tmp_path / f"b{suffix}", json.dumps({"text": row}) if suffix == ".jsonl" else f"text\n{row}")
        blocks = pack_documents(load_documents(files=[tmp_path / f"*{suffix}", tmp_path / "*.txt"]), tokenizer, 16)
        packed.append(tokenizer.decode([token for block in blocks["input_ids"] for token in block]))
    assert "first" in packed[0] and "other" in packed[1] and "first" not in packed[1]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_documents_are_identified_by_contents_in_any_folder(tmp_path, name):
    fingerprints = []
    for folder, moment in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        write_as_before(tmp_path / folder / name, json.dumps({"text": "words"}), moment)
        fingerprints.append(dataset_fingerprint(load_documents(files=[tmp_path / folder / name])))
        fingerprints.append(dataset_fingerprint(documents_from_files({"a": str(tmp_path / folder / name)})))
    assert fingerprints[:2] == fingerprints[2:]


def test_a_file_read_in_another_way_is_another_text(tmp_path):
    digests = set()
    for name in ("a.txt", "a.jsonl", "a.csv", "a.txt.gz"):
        (tmp_path / name).write_text('{"text": "words"}')
        digests.add(files_digest([tmp_path / name]))
    assert len(digests) == 4


def test_a_file_is_hashed_once_unless_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "a.txt", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: read.append(1) or digest(*arguments))
    write_as_before(path, "first")
    before = {files_digest([path]), documents_fingerprint(None, files=[path])}
    assert len(read) == len(before) == 1
    time.sleep(0.02)  # longer than a tick of a file system's clock
    write_as_before(path, "other")
    assert files_digest([path]) not in before and len(read) == 2


def test_a_table_without_rows_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl as json: no rows; correct it, or leave it out"):
        load_documents(files=[tmp_path / "a.jsonl"])


def test_files_that_are_the_same_are_cached_once(tmp_path):
    write_as_before(tmp_path / "a.txt", "text")
    first = load_documents(files=[tmp_path / "a.txt"])
    os.utime(tmp_path / "a.txt")
    again = load_documents(files=[tmp_path / "a.txt"])
    assert first.cache_files == again.cache_files


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_path_is_taken_as_it_is_whatever_characters_are_in_it(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a [1].txt").write_text("first")
    (folder / "b.txt").write_text("second")
    (folder / "c.jsonl").write_text('{"text": "third"}\n')
    for first in (f"{folder}/a [1].txt", folder / "a [1].txt"):
        assert texts(files=[first]) == ["first"]
    assert texts(files=[f"{folder}/*.txt"]) == ["first", "second"]
    assert texts(files=[f"{folder}/*"]) == ["first", "second", "third"]
    assert texts(files=f"{folder}/**/b*") == ["second"]


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_folder_of_a_dataset_may_have_any_characters(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "part.jsonl").write_text('{"text": "one"}\n')
    Dataset.from_dict({"text": ["two"]}).save_to_disk(folder / "saved [2]")
    assert texts(dataset=str(folder / "saved [2]")) == ["two"]
    (folder / "saved [2]").rename(tmp_path / "elsewhere")
    assert texts(dataset=str(folder)) == texts(dataset=folder) == ["one"]


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("at home")
    Dataset.from_dict({"text": ["saved"]}).save_to_disk(tmp_path / "saved")
    assert texts(files=["~/texts/*.txt"]) == texts(files=["~/texts/a.txt"]) == ["at home"]
    assert texts(dataset="~/saved") == ["saved"]


def test_a_file_named_twice_is_one_document(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert texts(files=["a.txt", "./a.txt", tmp_path / "a.txt", "*.txt"]) == ["text"]


TEXT = "é ü 中文\nsecond line"
ENCODED = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16 big": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "lines of Windows": TEXT.replace("\n", "\r\n").encode(),
}
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("encoding", ENCODED)
def test_text_is_read_in_the_encoding_its_mark_says_and_decompressed(tmp_path, encoding, pack):
    (tmp_path / f"a.txt{pack}").write_bytes(PACKED[pack](ENCODED[encoding]))
    assert texts(files=[tmp_path / f"a.txt{pack}"]) == [TEXT]


def test_tables_and_texts_are_mixed(tmp_path):
    rows = [{"content": f"row {i}", "id": i} for i in range(6)]
    Dataset.from_list(rows[:2]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(rows[2])}\n".encode()))
    (tmp_path / "c.csv").write_bytes(codecs.BOM_UTF8 + b'content,id\n"row 3",3\n')
    (tmp_path / "d.json").write_bytes(codecs.BOM_UTF8 + json.dumps(rows[4:]).encode())
    tables = load_documents(files=[f"{tmp_path}/*"], text_column="content")
    assert sorted(tables["content"][:]) == [row["content"] for row in rows]
    assert sorted(tables["id"][:]) == list(range(6))
    (tmp_path / "e.md").write_text("a text")
    mixed = load_documents(files=[f"{tmp_path}/*"], text_column="content")
    assert mixed.column_names == ["content"] and set(mixed["content"][:]) == {*tables["content"][:], "a text"}


def test_rows_without_text_are_no_documents(tmp_path, teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    (tmp_path / "a.csv").write_text('text,id\n,1\n"some words",2\n')
    (tmp_path / "b.txt").write_text("some words")
    of_table, of_text = (
        pack_documents(load_documents(files=[tmp_path / name]), tokenizer, 2)["input_ids"][:].tolist()
        for name in ("a.csv", "b.txt")
    )
    assert of_table == of_text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"\x00\x01binary", "is not text, since it contains null bytes; convert it, or leave it out"),
        ("a.txt", b"\xff\xfa", "is not utf-8 text"),
        ("a.txt", gzip.compress(b"packed", mtime=0), "is not utf-8 text"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a", "is not utf-16 text"),
        ("a.txt.gz", b"not packed", "cannot be decompressed"),
        ("a.txt.gz", gzip.compress(b"packed" * 99, mtime=0)[:-9], "cannot be decompressed"),
        ("a.txt.xz", b"not packed", "cannot be decompressed"),
        ("a.jsonl", b"no json\n", "cannot read .*a.jsonl as json"),
        ("a.json", b"", "cannot read .*a.json as json"),
        ("a.parquet", b"PAR1", "cannot read .*a.parquet as parquet"),
        ("a.jsonl", b'{"content": "x"}\n', r"a.jsonl has no column 'text', only \['content'\]; name one of these"),
        ("a.csv", b"text\n1\n", "the column 'text' holds int64, not text"),
    ],
)
def test_a_file_that_contradicts_its_suffix_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(files=[tmp_path / name])


def test_every_pattern_must_match(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"no file matches '.*b\*\.txt'; give files, or patterns"):
        load_documents(files=[f"{tmp_path}/a.txt", f"{tmp_path}/b*.txt"])
    with pytest.raises(DataError, match=r"no file matches '.*'; it is a folder: give .*/\*\*/\*\.txt"):
        load_documents(files=[tmp_path])
    with pytest.raises(DataError, match="no file was named"):
        load_documents(files=[])


def test_a_file_is_no_dataset(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match="is a file; give it under files"):
        load_documents(str(tmp_path / "a.jsonl"))


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("before")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"more")
    with pytest.raises(DataError, match="was changed while it was read"):
        load_documents(files=[path])
