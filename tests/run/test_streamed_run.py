"""A run on streamed text, on several sources and on tokenized ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from broken_runs import break_off, weights_that_differ
from datasets import Dataset
from fixtures_run import make_recipe

from hf_whittle.cli import main
from hf_whittle.data import BlockStream, streams
from hf_whittle.errors import DataError, OutputError, RecipeError, VocabularyError
from hf_whittle.run import run
from hf_whittle.run.changes import check_changes
from hf_whittle.run.fingerprints import input_fingerprints
from hf_whittle.run.inputs import Inputs
from hf_whittle.run.search_inputs import SearchInputs

STREAMED = {"data": {"streaming": True}, "heal": True, "baseline": True}


@pytest.fixture(scope="module")
def streamed(teacher_folder, texts, tmp_path_factory):
    """The recipe of a streamed run, and its results."""
    recipe = make_recipe(teacher_folder, texts, tmp_path_factory.mktemp("streamed") / "run", **STREAMED)
    return recipe, run(recipe, progress=False)


def rows_of(blocks):
    return np.asarray(blocks["input_ids"]).tolist()


def two_sources(texts, **changes):
    """The section `data` of two sources of different weights."""
    first, second = ({"files": [f"{texts}/{pattern}.txt"]} for pattern in ("[a-c]*", "[d-z]*"))
    return {"files": None, "sources": [first | {"weight": 3}, second], **changes}


@pytest.mark.slow
def test_a_streamed_run_trains_on_as_many_tokens_as_any_other(streamed, results):
    for name in ("student", "baseline"):
        assert streamed[1][name]["tokens"] == results[name]["tokens"]
        assert streamed[1][name]["steps"] == results[name]["steps"]
    assert streamed[1]["healing"]["tokens"] > 0


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["two Ctrl-C in training", "Ctrl-C in training of the baseline"])
def test_a_streamed_run_that_broke_off_goes_on_to_the_same_student(
    streamed, teacher_folder, texts, tmp_path, monkeypatch, broken
):
    recipe, results = streamed
    again = make_recipe(teacher_folder, texts, tmp_path / "run", **STREAMED)
    break_off(again, broken, monkeypatch)
    resumed = run(again, progress=False)
    assert weights_that_differ(recipe, again) == []
    assert resumed["student"]["curve"] == results["student"]["curve"]
    assert resumed["baseline"]["curve"][-1] == results["baseline"]["curve"][-1]


@pytest.mark.slow
def test_blocks_of_a_stream_are_those_of_the_loaded_text(teacher_folder, texts, tmp_path):
    loaded, streamed = (
        Inputs(make_recipe(teacher_folder, texts, tmp_path, data={"streaming": streaming}))
        for streaming in (False, True)
    )
    train = streamed.blocks["train"]
    assert isinstance(train, BlockStream) and rows_of(train.first(10**6)) == rows_of(loaded.blocks["train"])
    assert rows_of(streamed.training_blocks(7)) == rows_of(loaded.blocks["train"])[:7]
    for name, tokens in (("search", 128), ("test", 512)):
        assert len(streamed.blocks[name]) == tokens // 32 == len(loaded.blocks[name])
        whole = make_recipe(teacher_folder, texts, tmp_path, data={f"{name}_tokens": 10**6})
        assert rows_of(streamed.blocks[name]) == rows_of(Inputs(whole).blocks[name])[: tokens // 32]


@pytest.mark.slow
def test_several_sources_are_mixed_alike_whether_streamed_or_not(teacher_folder, texts, tmp_path):
    recipes = [
        make_recipe(teacher_folder, texts, tmp_path, data=two_sources(texts, streaming=streaming))
        for streaming in (False, True)
    ]
    loaded, streamed = map(Inputs, recipes)
    train = rows_of(loaded.blocks["train"])
    assert sorted(rows_of(streamed.training_blocks(40))) == sorted(train[:40])
    single = Inputs(make_recipe(teacher_folder, texts, tmp_path, data={"files": [f"{texts}/[a-c]*.txt"]}))
    own = rows_of(single.blocks["train"])
    assert sum(row in own for row in train[:40]) == 30
    for inputs in (loaded, streamed):
        assert (len(inputs.blocks["search"]), len(inputs.blocks["test"])) == (4, 16)


@pytest.mark.parametrize("streaming", [False, True])
def test_every_step_of_a_probe_has_the_sources_in_their_proportions(teacher_folder, texts, tmp_path, streaming):
    recipe = make_recipe(teacher_folder, texts, tmp_path, data=two_sources(texts, streaming=streaming))
    single = Inputs(make_recipe(teacher_folder, texts, tmp_path, data={"files": [f"{texts}/[a-c]*.txt"]}))
    own = rows_of(single.blocks["train"])
    rows = rows_of(SearchInputs(Inputs(recipe), tmp_path, progress=False).training_blocks(40))
    assert [sum(row in own for row in rows[first : first + 4]) for first in range(0, 40, 4)] == [3] * 10
    assert sorted(rows) == sorted(rows_of(Inputs(recipe).training_blocks(40)))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_on_several_sources_says_so(teacher_folder, texts, tmp_path, streaming):
    recipe = make_recipe(teacher_folder, texts, tmp_path / "run", data=two_sources(texts, streaming=streaming))
    results = run(recipe, progress=False)
    assert results["data"]["sources"] == [
        {"files": ["[a-c]*.txt"], "weight": 3.0}, {"files": ["[d-z]*.txt"], "weight": 1.0},
    ]  # fmt: skip
    assert "of `[a-c]*.txt (3); [d-z]*.txt (1)` in blocks of 32" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_tokenized_dataset_gives_the_blocks_of_its_text(teacher_folder, texts, tmp_path, streaming):
    of_text = Inputs(make_recipe(teacher_folder, texts, tmp_path))
    blocks = rows_of(of_text.blocks["train"])
    Dataset.from_dict({"ids": blocks}).to_parquet(tmp_path / "blocks.parquet")
    packed = {"files": [f"{tmp_path}/blocks.parquet"], "token_column": "ids", "streaming": streaming}
    for changes in ({"packed": True}, {"packed": False}):
        recipe = make_recipe(teacher_folder, texts, tmp_path)
        recipe = recipe.from_dict({**recipe.to_dict(), "data": {**recipe.to_dict()["data"], **packed, **changes}})
        inputs = Inputs(recipe)
        found = rows_of(inputs.training_blocks(10**6)) + rows_of(inputs.blocks["test"])
        assert all(len(row) == 32 for row in found)
        assert not changes["packed"] or all(row in blocks for row in found)


@pytest.mark.parametrize("streaming", [False, True])
def test_text_and_ids_are_mixed(teacher_folder, texts, tmp_path, streaming):
    ids = [[number % 250] * 32 for number in range(1, 400)]
    Dataset.from_dict({"ids": ids}).to_parquet(tmp_path / "ids.parquet")
    tokenized = {"files": [f"{tmp_path}/ids.parquet"], "token_column": "ids", "packed": True, "weight": 3}
    data = {"files": None, "sources": [{"files": [f"{texts}/*.txt"]}, tokenized], "streaming": streaming}
    inputs = Inputs(make_recipe(teacher_folder, texts, tmp_path, data=data))
    for blocks, number in ((inputs.training_blocks(40), 40), (inputs.blocks["test"], 16)):
        rows = rows_of(blocks)
        assert len(rows) == number and blocks.column_names == ["input_ids"]
        assert [row in ids for row in rows] == [False] * (number // 4) + [True] * (number // 4 * 3)


def test_ids_of_another_vocabulary_are_found_before_anything_expensive(teacher_folder, texts, tmp_path):
    Dataset.from_dict({"ids": [[10**6] * 31 + [number] for number in range(100)]}).to_parquet(tmp_path / "ids.parquet")
    for streaming in (False, True):
        data = {"files": [f"{tmp_path}/ids.parquet"], "token_column": "ids", "packed": True, "streaming": streaming}
        recipe = make_recipe(teacher_folder, texts, tmp_path / f"out-{streaming}")
        recipe = recipe.from_dict({**recipe.to_dict(), "data": {**recipe.to_dict()["data"], **data}})
        with pytest.raises((VocabularyError, DataError), match=r"token ids from .* to 1000000"):
            run(recipe, progress=False)
        assert not (tmp_path / f"out-{streaming}" / "candidates.jsonl").exists()


def test_a_run_is_told_by_its_streamed_text(teacher_folder, tmp_path, texts):
    (tmp_path / "a").mkdir()
    for number in range(20):
        (tmp_path / "a" / f"{number}.jsonl").write_text(json.dumps({"text": "words " * 3000}) * 20)
    recipe = make_recipe(teacher_folder, tmp_path / "a", tmp_path / "out", data={"streaming": True})
    recipe.data.files = [f"{tmp_path}/a/*.jsonl"]
    before = input_fingerprints(Inputs(recipe))
    assert input_fingerprints(Inputs(recipe)) == before
    with (tmp_path / "a" / "3.jsonl").open("r+") as file:
        file.write("{'")
    changed = input_fingerprints(Inputs(recipe))
    assert [name for name, value in changed.items() if before[name] != value] == ["the text"]


@pytest.mark.parametrize(
    "changes",
    [{"streaming": False}, {"search_fraction": 0.2}, {"split": "validation"}, {"document_column": "name"}],
)
def test_a_run_does_not_go_on_with_other_data(streamed, changes):
    values = streamed[0].to_dict()
    other = streamed[0].from_dict({**values, "data": {**values["data"], **changes}})
    with pytest.raises(OutputError, match="holds the run of a recipe with another data"):
        run(other, progress=False)


def test_a_run_may_go_on_with_the_commit_of_its_dataset(streamed):
    values = streamed[0].to_dict()
    check_changes(
        Path(streamed[0].output_dir),
        streamed[0].from_dict(values | {"data": values["data"] | {"dataset_revision": "1f"}}),
    )


def test_settings_that_cannot_stream_are_found_before_anything_expensive(teacher_folder, texts, tmp_path):
    def make(**sections):
        return make_recipe(teacher_folder, texts, tmp_path / "out", **{"data": {"streaming": True}, **sections})

    with pytest.raises(RecipeError, match="training: a stream has no end; give max_steps"):
        make(training={"max_steps": -1})
    with pytest.raises(RecipeError, match=r"teacher_store: .*set data.streaming to false, or leave teacher_store out"):
        make(teacher_store=str(tmp_path / "store"))
    with pytest.raises(DataError, match="got dataloader_num_workers=1; set it to 0"):
        run(make(training={"dataloader_num_workers": 1}), progress=False)
    assert not (tmp_path / "out" / "candidates.jsonl").exists()


def test_targets_of_a_stream_cannot_be_stored(streamed, tmp_path, capsys):
    streamed[0].save(tmp_path / "recipe.yaml")
    assert main(["store-logits", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "store")])
    assert "data.streaming: a store holds targets of blocks on disk" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_is_read_no_further_than_needed(teacher_folder, texts, tmp_path, monkeypatch):
    read, original = [], streams.StreamedSource.encode
    monkeypatch.setattr(
        streams.StreamedSource,
        "encode",
        lambda self, rows, split: read.append(len(rows)) or original(self, rows, split),
    )
    lines = "".join(json.dumps({"text": f"document {number} " * 30}) + "\n" for number in range(20_000))
    (tmp_path / "a.jsonl").write_text(lines)
    recipe = make_recipe(teacher_folder, texts, tmp_path / "out", data={"streaming": True})
    recipe.data.files = [f"{tmp_path}/a.jsonl"]
    inputs = Inputs(recipe)
    assert len(inputs.blocks["test"]) == 16 and len(inputs.healing_blocks) > 1
    assert sum(read) < 3000
