"""Every file of a tokenizer reaches the student by every way of saving it."""

import shutil
import struct

import pytest
from fixtures_run import make_recipe, write_modules
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import DistillationConfig, DistillationTrainer, SearchSpace, extract_subnet
from hf_whittle.cli import main
from hf_whittle.data import pack_documents
from hf_whittle.hub.publication import publication_of_folder
from hf_whittle.hub.saving import save_student
from hf_whittle.run import run

MODELS = ("tokenizer.model", "spiece.model")


def field(number, kind, value):
    """A field of a protocol buffer: text, or a number of single precision, or a small one."""
    tag = bytes([number << 3 | kind])
    return tag + (
        struct.pack("<f", value) if kind == 5 else bytes([value]) if kind == 0 else bytes([len(value)]) + value
    )


def sentencepiece_model():
    """A unigram model of SentencePiece, with a piece for each letter."""
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    letters = [(letter, 1) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    pieces = [
        field(1, 2, text.encode()) + field(2, 5, -float(number)) + field(3, 0, kind)
        for number, (text, kind) in enumerate(special + letters)
    ]
    return b"".join(field(1, 2, piece) for piece in pieces)


@pytest.fixture
def teacher(teacher_folder, tmp_path):
    """A teacher with every file that a tokenizer may have."""
    folder = tmp_path / "teacher"
    shutil.copytree(teacher_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}{{ messages }}"}
    tokenizer.save_pretrained(folder)
    for name in MODELS:
        (folder / name).write_bytes(sentencepiece_model() + name.encode())
    (folder / "added_tokens.json").write_text("{}")
    return folder


def files_of(folder, names=(*MODELS, "tokenizer.json")):
    return {name: (folder / name).read_bytes() for name in names}


def templates_of(folder):
    return AutoTokenizer.from_pretrained(folder).chat_template


def a_subnet(folder, draw):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    return draw(SearchSpace.from_config(config), 0)


def test_extraction_from_files_takes_all_of_them(teacher, draw, tmp_path):
    subnet = a_subnet(teacher, draw)
    out = extract_subnet(teacher, subnet, tmp_path / "student")
    names = (
        *MODELS,
        "tokenizer.json",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    )
    assert files_of(out, names) == files_of(teacher, names) and templates_of(out) == templates_of(teacher)
    subnet.save_pretrained(tmp_path / "subnet")
    arguments = [str(teacher), "--subnet", str(tmp_path / "subnet"), "--output-dir", str(tmp_path / "by command")]
    assert main(["extract", *arguments]) == 0
    assert files_of(tmp_path / "by command", names) == files_of(teacher, names)


def test_a_published_folder_has_all_of_them(teacher, draw, tmp_path):
    out = extract_subnet(teacher, a_subnet(teacher, draw), tmp_path / "student")
    published = publication_of_folder(out, "me/student")
    names = (*MODELS, "added_tokens.json", "chat_template.jinja", "additional_chat_templates/tools.jinja")
    assert {name: published.read(name) for name in names} == files_of(teacher, names)
    owned = published.owned(is_another=False, overwrite=False)
    assert {*MODELS, "additional_chat_templates/*.jinja"} <= set(owned)


def test_a_student_that_is_saved_with_its_tokenizer_has_all_of_them(teacher, draw, tmp_path):
    student = extract_subnet(AutoModelForCausalLM.from_pretrained(teacher), a_subnet(teacher, draw))
    save_student(student, tmp_path / "student", tokenizer=AutoTokenizer.from_pretrained(teacher))
    assert files_of(tmp_path / "student") == files_of(teacher)
    assert templates_of(tmp_path / "student") == templates_of(teacher)


def test_a_tokenizer_with_other_tokens_gets_none_of_these_files(teacher, draw, tmp_path):
    student = extract_subnet(AutoModelForCausalLM.from_pretrained(teacher), a_subnet(teacher, draw))
    tokenizer = AutoTokenizer.from_pretrained(teacher).train_new_from_iterator(["other words"] * 9, 280)
    save_student(student, tmp_path / "student", tokenizer=tokenizer)
    assert not [name for name in MODELS if (tmp_path / "student" / name).exists()]


@pytest.mark.slow
def test_checkpoints_and_runs_have_all_of_them(teacher, draw, tmp_path):
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    student = extract_subnet(AutoModelForCausalLM.from_pretrained(teacher), a_subnet(teacher, draw))
    args = DistillationConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, save_steps=1, beta=0.0, report_to="none", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    blocks = pack_documents(Dataset.from_dict({"text": ["some text to learn"] * 20}), tokenizer, 8)
    trainer = DistillationTrainer(student, args=args, train_dataset=blocks, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "out" / "checkpoint-1", tmp_path / "saved"):
        assert files_of(folder) == files_of(teacher)
    recipe = make_recipe(teacher, write_modules(tmp_path / "texts"), tmp_path / "run")
    run(recipe, progress=False)
    assert files_of(tmp_path / "run") == files_of(teacher) and templates_of(tmp_path / "run") == templates_of(teacher)
