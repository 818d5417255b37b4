"""Models to evaluate: checkpoints, students, adapters and subnets, and errors for what is none."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from fixtures_evaluation import SUBNET, TEXTS
from transformers import AutoModelForCausalLM

from hf_whittle import extract_subnet, push_subnet_to_hub
from hf_whittle.errors import CheckpointError, SubnetError, VocabularyError, WhittleError
from hf_whittle.evaluation import measure_texts
from hf_whittle.evaluation.subject import loaded_subject
from hf_whittle.vocabulary import closed


def perplexity_of(name, **options):
    with loaded_subject(name, **options) as subject:
        return measure_texts(subject.model, subject.tokenizer, TEXTS).perplexity


def test_a_subnet_of_the_supernetwork_is_the_student(teacher_folder, student_folder):
    as_subnet = perplexity_of(teacher_folder, subnet=SUBNET)
    assert as_subnet == pytest.approx(perplexity_of(student_folder), rel=1e-6)
    assert as_subnet != pytest.approx(perplexity_of(teacher_folder), rel=0.01)


def test_a_subnet_reads_text_in_the_tokens_that_it_keeps(teacher_folder, tokenizer, tmp_path):
    subnet = replace(SUBNET, vocab_size=tuple(closed(tokenizer, range(0, 300, 2))))
    student = extract_subnet(teacher_folder, subnet, tmp_path / "student")
    assert perplexity_of(teacher_folder, subnet=subnet) == pytest.approx(perplexity_of(student), rel=1e-5)
    with pytest.raises(VocabularyError, match=r"the kept ids lack .* tokens that always stay"):
        perplexity_of(teacher_folder, subnet=replace(SUBNET, vocab_size=20))


def test_an_adapter_is_evaluated_on_its_student(adapter_folder, student_folder):
    peft = pytest.importorskip("peft")
    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student_folder), adapter_folder)
    with loaded_subject(adapter_folder) as subject:
        found = measure_texts(subject.model, subject.tokenizer, TEXTS)
        expected = measure_texts(merged.merge_and_unload(), subject.tokenizer, TEXTS)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert found.perplexity != pytest.approx(perplexity_of(student_folder), rel=0.01)


def test_a_student_is_evaluated_from_the_hub(student_folder, hub):
    push_subnet_to_hub(student_folder, "me/student")
    assert perplexity_of("me/student") == pytest.approx(perplexity_of(student_folder), rel=1e-6)
    with pytest.raises(CheckpointError, match="me/nothing"):
        perplexity_of("me/nothing")


def test_precision_is_that_of_the_checkpoint_or_the_given_one(teacher_folder):
    with loaded_subject(teacher_folder) as whole, loaded_subject(teacher_folder, dtype="bfloat16") as half:
        assert whole.model.dtype == torch.float32 and half.model.dtype == torch.bfloat16


def test_an_adapter_that_cannot_be_loaded_says_what_to_do(adapter_folder, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    with pytest.raises(SubnetError, match="is an adapter, and no subnet of one can be active"):
        perplexity_of(folder, subnet=SUBNET)
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, message in ((None, "does not say which model it is of"), ("/no/where", r"/no/where, cannot be loaded")):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(CheckpointError, match=message):
            perplexity_of(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is damaged"):
        perplexity_of(folder)


def test_what_is_no_model_is_said(teacher_folder, tmp_path, make_stock):
    with pytest.raises(CheckpointError, match="nowhere"):
        perplexity_of(tmp_path / "nowhere")
    make_stock().save_pretrained(tmp_path / "alone")
    with pytest.raises(CheckpointError, match="has no tokenizer: put the tokenizer's files beside it"):
        perplexity_of(tmp_path / "alone")
    for file in teacher_folder.glob("token*"):
        shutil.copy(file, tmp_path / "alone")
    with pytest.raises(VocabularyError, match="has 300 tokens, the model only 99 embeddings"):
        perplexity_of(tmp_path / "alone")
    with pytest.raises(WhittleError, match=r"the device 'tpu:7' cannot be used: .*; give cpu, cuda"):
        perplexity_of(teacher_folder, device="tpu:7")
