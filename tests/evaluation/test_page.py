"""The commands and snippets of docs/evaluation.md run as they stand, with a tiny student."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from fixtures_evaluation import SUBNET, TEXTS
from transformers import Trainer, TrainingArguments

from hf_whittle.cli import main
from hf_whittle.cli.evaluate import add_arguments
from hf_whittle.data import collate_blocks, pack_documents

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def blocks_of(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks_of("bash") for line in block.splitlines() if line.startswith("hf-whittle")]


@pytest.fixture
def here(student_folder, teacher_folder, text_files, task_folder, tmp_path, monkeypatch):
    """A working folder with everything that the page names."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("student", student_folder), ("pythia", teacher_folder), ("texts", text_files)):
        shutil.copytree(source, tmp_path / name)
    SUBNET.save_pretrained(tmp_path / "search")
    (tmp_path / "my_tasks").mkdir()
    task = (task_folder / "local_choices.yaml").read_text().replace("task: local_choices", "task: my_task")
    (tmp_path / "my_tasks" / "my_task.yaml").write_text(task)
    return tmp_path


@pytest.mark.parametrize("command", [line for line in COMMANDS if "lambada" not in line and "--dataset" not in line])
def test_commands_run(command, here, capsys):
    if "--tasks" in command:
        pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'hf_whittle[eval]'")
    assert main(shlex.split(command.replace("EleutherAI/pythia-410m", "pythia"))[1:]) == 0
    assert ("perplexity" in capsys.readouterr().out) == ("--tasks" not in command)


def test_commands_that_need_the_hub_are_read():
    from argparse import ArgumentParser

    parser = ArgumentParser()
    add_arguments(parser)
    assert all(parser.parse_args(shlex.split(line)[2:]) for line in COMMANDS) and len(COMMANDS) == 5


def test_snippets_run(here, capsys):
    pytest.importorskip("evaluate", reason="metrics need evaluate: pip install 'hf_whittle[eval]'")
    names = {"Trainer": Trainer, "collate_blocks": collate_blocks}
    first, second, third = blocks_of("python")
    exec(first, names)
    names["blocks"] = pack_documents(Dataset.from_dict({"text": TEXTS}), names["tokenizer"], 32)
    names["args"] = TrainingArguments("trained", use_cpu=True, report_to="none", disable_tqdm=True)
    exec(second, names)
    assert f"{names['found'].bits_per_byte:.4f}" in capsys.readouterr().out.splitlines()[-1]
    exec(third, names)
    assert names["trainer"].evaluate()["eval_bits_per_byte"] > 0
