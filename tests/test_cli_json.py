"""JSON of commands: one object on stdout, and all else on stderr."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from fixtures_processes import launched
from fixtures_run import RECIPE, write_modules

import hf_whittle.cli.demo
import hf_whittle.run
from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.cli import COMMANDS, main, make_parser
from hf_whittle.cli.output import Outcome, print_outcome
from hf_whittle.record.results import Results
from hf_whittle.record.samples import Sample


@pytest.fixture(scope="module")
def place(teacher_folder, tmp_path_factory):
    """A folder in which every command can be run."""
    folder = tmp_path_factory.mktemp("json")
    shutil.copytree(teacher_folder, folder / "teacher")
    texts = write_modules(folder / "texts")
    data = {**RECIPE["data"], "files": [f"{texts}/*.txt"]}
    training = {**RECIPE["training"], "max_steps": 2}
    recipe = RECIPE | {"teacher": "teacher", "output_dir": "searched", "data": data, "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    kept = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": [40, 8, 64]}
    SubnetConfig(**kept).save_pretrained(folder / "subnet")
    extract_subnet(teacher_folder, SubnetConfig(**kept), folder / "student")
    return folder


@pytest.fixture
def ask(place, monkeypatch, capfd):
    """A function that runs a command and gives the JSON that it prints."""
    monkeypatch.chdir(place)

    def ask(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return ask


def test_every_command_can_be_asked_for_json():
    commands = next(action.choices for action in make_parser()._actions if action.dest == "command")
    without = [name for name, parser in commands.items() if "--json" not in parser._option_string_actions]
    assert set(commands) == set(COMMANDS) and without == []


@pytest.mark.slow
def test_search(ask):
    said = ask("search", "recipe.yaml")
    assert said["output_dir"] == "searched"
    assert said["search"] == json.loads(Path("searched/stages/search.json").read_text())


@pytest.mark.slow
def test_search_in_words_says_what_is_next(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["search", "recipe.yaml", "--output-dir", "other", "--search.seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "Best subnet of the search:" in said and "layers kept" in said
    assert "hf-whittle run recipe.yaml --output-dir other --search.seed 3" in said
    assert "hf-whittle extract teacher --subnet other --output-dir other-sliced" in said


@pytest.mark.slow
def test_extract_train_and_info(ask):
    made = ask("extract", "teacher", "--subnet", "subnet", "--output-dir", "cut")
    assert made["output_dir"] == "cut" and made["files"] == 1 and made["bytes"] > 4 * made["parameters"]
    assert ask("info", "cut")["model"]["parameters"] == made["parameters"]
    trained = ask("train", "recipe.yaml", "--student", "cut", "--output-dir", "trained")
    assert trained["output_dir"] == "trained" and trained["results"]["student"]["parameters"] == made["parameters"]
    assert trained["results"] == Results.load("trained").to_dict()


@pytest.mark.slow
def test_store_logits(ask):
    said = ask("store-logits", "recipe.yaml", "--output-dir", "store", "--draws", "2")
    assert said["output_dir"] == "store" and said["tokens"] % 32 == 0 < said["bytes_per_token"]


@pytest.mark.usefixtures("hub")
def test_push_that_sends_nothing(ask, place):
    said = ask("push", "student", "me/student", "--dry-run")
    assert said["repo_id"] == "me/student" and said["card"].startswith("---\n")
    assert said["files"]["model.safetensors"] == (place / "student" / "model.safetensors").stat().st_size


def test_run_and_demo_give_what_was_measured(ask, monkeypatch):
    results = {"teacher": {"parameters": 2, "perplexity": 5.5}, "student": {"parameters": 1, "tokens": 3}}
    results["student"]["curve"] = [{"perplexity": float("inf"), "tokens": 0}, {"perplexity": 2.5, "tokens": 3}]

    def run(recipe):
        print("something of a library")
        return results

    monkeypatch.setattr(hf_whittle.run, "run", run)
    monkeypatch.setattr(
        hf_whittle.cli.demo, "generate", lambda folder: [Sample(prompt="def read", continuation="(self):")]
    )
    said = ask("run", "recipe.yaml")
    assert said["output_dir"] == "searched" and said["results"]["student"]["curve"][0]["perplexity"] is None
    said = ask("demo", "--output-dir", "shown")
    assert said["output_dir"] == str(Path("shown").resolve()) and said["texts"] == ["def read(self):"]


@pytest.mark.slow
def test_plan(ask):
    said = ask("plan", "recipe.yaml", "--device", "h100")
    assert [stage["name"] for stage in said["stages"]] == ["search", "extraction", "teacher", "student"]


def test_what_is_printed_on_the_way_goes_to_stderr_and_no_number_of_json_is_none():
    class Options:
        json = True

    def work(options):
        print("on the way")
        return Outcome({"perplexity": float("nan"), "curve": [1.5, float("inf")], "n": 3}, "text")

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        print_outcome(work, Options)
    assert json.loads(out.getvalue()) == {"perplexity": None, "curve": [1.5, None], "n": 3}
    assert err.getvalue() == "on the way\n"


@pytest.mark.slow
def test_two_processes_train_and_one_prints(place):
    script = place / "launched.py"
    script.write_text("import sys\nfrom hf_whittle.cli import main\nsys.exit(main())\n")
    values = yaml.safe_load((place / "recipe.yaml").read_text())
    values |= {"teacher": str(place / "teacher"), "output_dir": str(place / "by-two")}
    (place / "two.yaml").write_text(yaml.safe_dump(values))
    given = ["--student", place / "teacher", "--output-dir", place / "trained-by-two", "--json"]
    trained = launched(script, "train", place / "two.yaml", *given)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["results"]["student"]["steps"] == 2
