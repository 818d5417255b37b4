"""Paths mean what a user means by them: `~` is the home, every other character is itself."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fixtures_search import BIN, CONFIG
from transformers import AutoModelForCausalLM

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    EvolutionConfig,
    ImportanceScores,
    SearchResult,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    score_importance,
    search_subnets,
)
from hf_whittle.cli import main
from hf_whittle.distillation.store.reader import LogitStore
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.distillation.teacher import load_teacher
from hf_whittle.hub.publication import publication_of_folder
from hf_whittle.hub.saving import save_student
from hf_whittle.search.algorithms import ALGORITHMS

ODD = "my files [1] é 日本"


@pytest.fixture(params=["str", "Path"])
def place(request, tmp_path, monkeypatch):
    """A function that gives a path in the home, as text or as a `Path`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    kind = {"str": str, "Path": Path}[request.param]
    yield lambda name: kind(f"~/{ODD}/{name}")
    assert not (tmp_path / "~").exists()


@pytest.fixture
def subnet(tiny_config, draw):
    return draw(SearchSpace.from_config(tiny_config), 0)


@pytest.mark.slow
def test_students(place, stock, subnet, tmp_path):
    stock.save_pretrained(tmp_path / ODD / "teacher")
    subnet.save_pretrained(place("subnet"))
    assert SubnetConfig.from_pretrained(place("subnet")) == subnet
    for model, name in ((stock, "of memory"), (place("teacher"), "of files")):
        out = extract_subnet(model, subnet, place(name))
        assert out == tmp_path / ODD / name and AutoModelForCausalLM.from_pretrained(out)
    arguments = [place("teacher"), "--subnet", place("subnet"), "--output-dir", place("by command")]
    assert main(["extract", *map(str, arguments)]) == 0
    save_student(extract_subnet(place("teacher"), subnet), place("saved"))
    assert "subnet.json" in publication_of_folder(place("saved"), "me/student").files
    assert main(["push", str(place("by command")), "me/student", "--dry-run"]) == 0


def test_searches(place, tmp_path):
    config = EvolutionConfig(generations=1, population_size=4, num_offspring=2, num_elites=2)
    space = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)
    search_subnets(
        None, space, bin=BIN, config=config, fitness=lambda s: 1.0, output_dir=place("search"), progress=False
    )
    found = SearchResult.load(place("search"))
    assert found.evaluations and (tmp_path / ODD / "search" / "search.json").is_file()
    found.save(place("again"))
    assert SearchResult.from_pretrained(place("again")).evaluations == found.evaluations


def test_archives_are_told_by_their_contents(place, tmp_path):
    before = ALGORITHMS["surrogate"](archives=[place("archive")])
    (tmp_path / ODD / "archive").mkdir(parents=True)
    settings = []
    for content in ("one", "one", "two"):
        (tmp_path / ODD / "archive" / "candidates.jsonl").write_text(content)
        settings.append(before.settings)
    assert settings[0] == settings[1] != settings[2]
    assert settings[0]["archives"] == [str(tmp_path / ODD / "archive")]


def test_scores(place, stock, input_ids, tmp_path):
    scores = score_importance(stock, input_ids, cache_dir=place("cache"), progress=False)
    assert list((tmp_path / ODD / "cache").glob("importance-*"))
    scores.save(place("scores.safetensors"))
    assert ImportanceScores.load(place("scores.safetensors")).settings == scores.settings


@pytest.mark.slow
def test_teachers_stores_and_trainings(place, stock, input_ids, tmp_path):
    stock.save_pretrained(tmp_path / ODD / "teacher")
    assert torch.equal(next(load_teacher(place("teacher")).parameters()), next(stock.parameters()))
    blocks = Dataset.from_dict({"input_ids": input_ids.tolist()})
    store_targets(place("teacher"), blocks, place("store"), progress=False)
    for teacher in (place("teacher"), LogitStore(place("store"))):
        args = DistillationConfig(
            output_dir=place("out"), max_steps=1, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
        )
        student = AutoModelForCausalLM.from_pretrained(tmp_path / ODD / "teacher")
        trainer = DistillationTrainer(student, teacher, args, train_dataset=blocks)
        trainer.train()
        trainer.train_from(str(tmp_path / ODD / "out" / "checkpoint-1"))
    assert (tmp_path / ODD / "out" / "checkpoint-1" / "model.safetensors").is_file()
