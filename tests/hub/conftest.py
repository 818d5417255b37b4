"""Students to publish, and the waits and logs of the client that publishes them."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    ParameterBin,
    RandomSearchConfig,
    SearchResult,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    save_student,
    search_subnets,
)
from hf_whittle.hub import repository

STOCK = SubnetConfig(16, [0, 2, 4], 2, 32)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that a push would have waited before each new attempt."""
    seconds = []
    monkeypatch.setattr(repository, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def warnings(caplog, monkeypatch):
    """A function that returns, and then forgets, the logs of all libraries so far."""
    for name in ("transformers", "huggingface_hub"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)

    def given():
        text = caplog.text
        caplog.clear()
        return text

    return given


@pytest.fixture(scope="session")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture(scope="session")
def found(teacher_folder, input_ids):
    """A search of four subnets of the teacher; no stock model can hold the best."""
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(teacher_folder)
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    config = RandomSearchConfig(evaluations=4)
    return search_subnets(
        supernet, space, bin=ParameterBin(0, 1e9), eval_dataset=input_ids, config=config, progress=False
    )


@pytest.fixture(scope="session")
def pictures(found, tmp_path_factory):
    return found.plot(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def drawn_before(pictures, monkeypatch):
    """Copy pictures of a search drawn once, which takes longer than the rest of a push."""

    def plot(self, folder):
        return [Path(shutil.copy(picture, folder)) for picture in pictures]

    monkeypatch.setattr(SearchResult, "plot", plot)


@pytest.fixture(scope="session")
def stock_student(teacher_folder):
    return extract_subnet(teacher_folder, STOCK)


@pytest.fixture(scope="session")
def uneven_student(teacher_folder, uneven_subnet):
    return extract_subnet(teacher_folder, uneven_subnet)


@pytest.fixture(scope="session")
def stock_folder(stock_student, tokenizer, tmp_path_factory):
    """The folder of a student that was extracted and not trained."""
    folder = tmp_path_factory.mktemp("student")
    save_student(stock_student, folder, tokenizer=tokenizer)
    return folder
