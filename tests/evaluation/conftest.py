"""A tiny model with a tokenizer, as a checkpoint, a student, a super-network and an adapter, and texts."""

import pytest
import torch
from fixtures_evaluation import SUBNET, TEXTS, write_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import extract_subnet


@pytest.fixture(scope="session")
def tokenizer(teacher_folder):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture(scope="session")
def model(teacher_folder):
    return AutoModelForCausalLM.from_pretrained(teacher_folder)


@pytest.fixture(scope="session")
def student_folder(teacher_folder, tmp_path_factory):
    """A student's folder as `hf-whittle extract` writes it."""
    return extract_subnet(teacher_folder, SUBNET, tmp_path_factory.mktemp("students") / "student")


@pytest.fixture(scope="session")
def adapter_folder(student_folder, tmp_path_factory):
    """LoRA adapters of that student, with weights that change it."""
    peft = pytest.importorskip("peft", reason="adapters need peft: pip install 'hf_whittle[adapters]'")
    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_pretrained(student_folder)
    config = peft.LoraConfig(target_modules=["dense", "query_key_value"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    peft.get_peft_model(student, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_files(tmp_path_factory):
    """A folder with a file for each text."""
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """A folder with tasks of lm-evaluation-harness made from files."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))
