"""Names of the other libraries mean what `hf_whittle.compat` takes them for."""

import argparse
import logging
from types import SimpleNamespace

import bitsandbytes
import peft
import pytest
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import upload_file
from relying import relies_on
from torch import nn
from transformers import (
    AutoTokenizer,
    GPTNeoXForCausalLM,
)

from hf_whittle.compat.others import (
    HUB_LOGGERS,
    LORA_PREFIX,
    arguments_of,
    commit_info,
    dataset_fingerprint,
    divide_requests,
    set_dataset_fingerprint,
    with_features,
    without_packing,
)


def test_signatures_are_printed_by_the_known_loggers(repository, hub, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    caplog.set_level(logging.INFO)
    hub.fail("PUT", "^/upload/")
    upload_file(path_or_fileobj=b"weights", path_in_repo="new.bin", repo_id=repository.name)
    with relies_on("huggingface_hub", "the names of loggers"):
        printed = {record.name for record in caplog.records if "signature=" in record.getMessage()}
        assert len(printed) == 2 and printed < set(HUB_LOGGERS)


def test_a_lost_commit_names_its_hub():
    facts = {"commit_message": "", "commit_description": "", "oid": "1"}
    with relies_on("huggingface_hub", "CommitInfo(_endpoint)"):
        found = commit_info("http://127.0.0.1:1", commit_url="http://127.0.0.1:1/me/x/commit/1", **facts)
        assert (found.repo_url.endpoint, found.repo_url.repo_id) == ("http://127.0.0.1:1", "me/x")


def test_fingerprint_decides_what_is_cached():
    def derived(text):
        documents = Dataset.from_dict({"text": [text]})
        set_dataset_fingerprint(documents, "0123456789abcdef")
        return documents, dataset_fingerprint(documents.select_columns("text"))

    with relies_on("datasets", "Dataset._fingerprint"):
        (first, of_first), (_, of_second) = derived("a"), derived("b")
        assert dataset_fingerprint(first) == "0123456789abcdef"
        assert of_first == of_second != "0123456789abcdef"


def test_streamed_columns_are_read_off_and_no_row_is_lost():
    rows = [{"text": "a"}, {"text": "b"}]
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    with relies_on("datasets", "IterableDataset._resolve_features"):
        assert streamed.column_names is None, "with_features is not needed any more"
        known = with_features(streamed)
        assert known.column_names == ["text"] and list(known) == rows


def test_parameters_of_lora_are_the_ones_it_trains(stock):
    with relies_on("peft", "names of LoRA's parameters"):
        adapted = peft.get_peft_model(GPTNeoXForCausalLM(stock.config), peft.LoraConfig(target_modules=["dense"]))
        for name, parameter in adapted.named_parameters():
            assert (LORA_PREFIX in name) == parameter.requires_grad, name


def test_four_bit_weights_are_packed_outside_the_block_alone(monkeypatch):
    class PackedError(Exception):
        pass

    def pack(*args):
        raise PackedError

    with relies_on("bitsandbytes", "Linear4bit.support_avx512bf16_for_cpu"):
        monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", pack)
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32).to("cpu").eval()
        assert layer.support_avx512bf16_for_cpu in (False, True)
        layer.support_avx512bf16_for_cpu = True  # as on CPUs that have the instructions
        model, x = nn.Sequential(layer), torch.ones(1, 64)
        with without_packing(model):
            model(x)
        with pytest.raises(PackedError):
            model(x)


def test_requests_to_a_loaded_model_are_divided(stock, teacher_folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="pip install 'hf_whittle[eval]'")
    accelerator = SimpleNamespace(process_index=1, num_processes=3, unwrap_model=lambda model: model)
    with relies_on("lm_eval", "HFLM._rank and HFLM._world_size"):
        lm = huggingface.HFLM(stock, tokenizer=AutoTokenizer.from_pretrained(teacher_folder), backend="causal")
        assert (lm.rank, lm.world_size) == (0, 1)
        divide_requests(lm, accelerator)
        assert (lm.rank, lm.world_size, lm.model) == (1, 3, stock)


def test_arguments_of_a_parser_are_those_that_were_added():
    parser = argparse.ArgumentParser(add_help=False)
    command = parser.add_subparsers().add_parser("run", add_help=False)
    added = [command.add_argument("recipe"), command.add_mutually_exclusive_group().add_argument("--json")]
    assert arguments_of(command) == added
    assert [action.choices for action in arguments_of(parser)] == [{"run": command}]
