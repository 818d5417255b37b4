"""`results.json` read and written: the same JSON, and no section of another form."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from hf_whittle.record.data import DataFacts
from hf_whittle.record.facts import SourceFacts
from hf_whittle.record.results import Results

FILES = sorted((Path(__file__).parents[2] / "model_cards").glob("*/results.json"))


@pytest.fixture(params=FILES, ids=[file.parent.name for file in FILES])
def file(request):
    return request.param


def test_a_file_is_written_as_it_was_read(file, tmp_path):
    results = Results.load(file.parent)
    results.save(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == file.read_bytes()
    assert Results.load(tmp_path) == results and results.to_dict() == json.loads(file.read_text())


def test_every_section_is_in_one_of_the_files():
    known = {name for file in FILES for name in json.loads(file.read_text())}
    other = {"began_with", "evaluation", "vocabulary"}  # of a given, a later evaluated or a pruned student
    assert known | other == {field.name for field in fields(Results)}


def test_nothing_is_known_without_a_file(tmp_path):
    assert Results.load(tmp_path) == Results() and Results().to_dict() == {}


def test_sections_of_another_form_are_passed_over(file, tmp_path):
    values = json.loads(file.read_text())
    del values["search"]["space"]["granularity"]
    values |= {"data": [1, 2], "teacher": "me", "to_match": {"perplexity": 3}, "accuracy": 0.5}
    (tmp_path / "results.json").write_text(json.dumps(values))
    results = Results.load(tmp_path)
    assert results.search is results.data is results.teacher is results.to_match is None
    assert results.student == Results.load(file.parent).student


@pytest.mark.parametrize("values", [[1, 2], "results", 3, None, {"accuracy": 0.5}], ids=str)
def test_a_file_of_another_program_holds_nothing(tmp_path, values):
    (tmp_path / "results.json").write_text(json.dumps(values))
    assert Results.load(tmp_path) == Results()


def test_facts_without_a_needed_one_are_an_error_that_names_it():
    with pytest.raises(TypeError, match="block_size"):
        DataFacts.from_dict({"dataset": "someone/text"})
    with pytest.raises(TypeError, match="DataFacts must be made of a dict, got 7"):
        DataFacts.from_dict(7)


def test_a_source_names_no_path(tmp_path):
    assert SourceFacts.from_dict({"name": str(tmp_path / "teacher")}) == SourceFacts(name="teacher")
