"""Commands print nothing but messages for the user: each command, one after the other, in a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_run import make_recipe, write_modules

import hf_whittle

DEMO = Path(hf_whittle.__file__).parent / "demo" / "teacher"
EXAMPLE = Path(__file__).parents[1] / "examples" / "quick_start.py"
SCRIPT = """
import json, os, runpy, signal, sys
from transformers import TrainerCallback
import hf_whittle.run.trainers
from hf_whittle.cli import main
from hf_whittle.cli.demo import generate

class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

class Interrupted(hf_whittle.run.trainers.DistillationTrainer):
    def __init__(self, *args, callbacks=(), **kwargs):
        super().__init__(*args, callbacks=[*callbacks, Interrupt()], **kwargs)

trainer = hf_whittle.run.trainers.DistillationTrainer
for name, arguments in json.load(open(sys.argv[1])).items():
    for stream in (sys.stdout, sys.stderr):
        print(f"=== {name}", file=stream, flush=True)
    hf_whittle.run.trainers.DistillationTrainer = Interrupted if name == "interrupted" else trainer
    if name == "example":
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    elif name == "generate":
        generate(arguments[0])
    else:
        assert main(arguments) == (130 if name == "interrupted" else 0), name
"""
BAR = re.compile(r"[\w ]*: +\d+%\|.*\]|[\w ]+: \d+ examples \[.*\]|\s*\d+%\|.*\]|\x1b\[A|search: \d+ of .* left.*")
SAID = {
    "interrupted": [
        "Interrupted: saving a checkpoint after this step. Press Ctrl-C again to stop at once.",
        "hf-whittle: interrupted; run the same command again to go on",
    ],
    "push": ["the card states no license: none could be read for the checkpoint that the student was extracted from. "
             "Give one as card_data=SubnetModelCardData(license=...), or with --license"],
}  # fmt: skip


def by_command(output):
    """Lines of each command that are neither empty nor the state of a bar, as a long search tells it."""
    found = {}
    for part in output.split("=== ")[1:]:
        name, _, said = part.partition("\n")
        lines = (BAR.sub("", line).strip() for line in re.split(r"[\r\n]", said))
        found[name] = [line for line in lines if line]
    return found


@pytest.fixture
def commands(teacher_folder, tmp_path):
    texts, student = write_modules(tmp_path / "texts"), tmp_path / "student"
    recipe = make_recipe(
        teacher_folder, texts, student, heal=True, baseline=True, training={"save_steps": 0.3, "eval_steps": 0.3},
        data={"calibration_tokens": 512, "search_tokens": 128},
    )  # fmt: skip
    recipe.save(tmp_path / "recipe.yaml")
    healing = ["--heal", "--files", f"{texts}/*.txt", "--block-size", "32", "--calibration-tokens", "512"]
    return {
        "interrupted": ["run", f"{tmp_path}/recipe.yaml"],
        "resumed": ["run", f"{tmp_path}/recipe.yaml"],
        "done": ["run", f"{tmp_path}/recipe.yaml"],
        "generate": [f"{DEMO}"],
        "extract": [
            "extract", f"{teacher_folder}", "--subnet", f"{student}", "--output-dir", f"{tmp_path}/cut", *healing,
        ],
        "store-logits": ["store-logits", f"{tmp_path}/recipe.yaml", "--output-dir", f"{tmp_path}/store"],
        "push": ["push", f"{student}", "me/student"],
        "example": [
            f"{EXAMPLE}", "--teacher", f"{teacher_folder}", "--files", f"{texts}/*.txt", "--output_dir", "out",
            "--low", "30000", "--high", "40000", "--block_size", "32", "--max_steps", "4", "--generations", "0",
        ],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_commands_print_nothing_but_messages_for_the_user(commands, tmp_path):
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "commands.json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = by_command(done.stderr)
    assert list(said) == list(commands)
    assert {name: lines for name, lines in said.items() if lines} == SAID
    printed = by_command(done.stdout)
    assert all(line.startswith("{'") for line in printed.pop("example"))  # the log of a Trainer
    assert printed["resumed"] == printed["done"] and printed["done"][0].startswith("parameters")
    assert printed["interrupted"] == printed["generate"] == []
    assert [len(printed[name]) for name in ("extract", "store-logits", "push")] == [2, 1, 1]
