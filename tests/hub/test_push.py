"""What `push_subnet_to_hub` publishes: one commit with everything, that loads anywhere."""

import json

import pytest
import torch
from hub.server import READ
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import (
    ParameterBin,
    SearchResult,
    SearchSpace,
    SubnetConfig,
    SubnetModelCardData,
    extract_subnet,
    push_search_archive,
    push_subnet_to_hub,
    search_subnets,
)
from hf_whittle.errors import HubError
from hf_whittle.search.random import RandomSearchConfig

STOCK = SubnetConfig(16, [0, 2, 4], 2, 32)


@pytest.fixture(scope="module")
def search(supernet, input_ids):
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    config = RandomSearchConfig(evaluations=4)
    return search_subnets(
        supernet, space, bin=ParameterBin(0, 1e9), eval_dataset=input_ids, config=config, progress=False
    )


@pytest.fixture
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


def test_everything_is_published_in_one_commit(any_hub, supernet, search, tokenizer):
    student = extract_subnet(supernet, search.best)
    commit = push_subnet_to_hub(student, "me/student", search_result=search, tokenizer=tokenizer)
    files, commits = any_hub.files("me/student"), any_hub.commits("me/student")
    assert [each.title for each in commits] == ["Upload a student of hf_whittle", "initial commit"]
    assert commit.oid == commits[0].oid
    assert set(files) == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("subnet.json", "search.json", "candidates.jsonl", "results.json", "README.md", ".gitattributes"),
        *("search.png", "pareto.png", "architecture.png"),
        *("configuration_whittle_gpt_neox.py", "modeling_whittle_gpt_neox.py"),
    }
