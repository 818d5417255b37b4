"""The command line: its options, its exit status and what it says when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_whittle.run
from hf_whittle import __version__
from hf_whittle.cli import COMMANDS, main, make_parser
from hf_whittle.errors import BinError

RECIPE = {
    "teacher": "someone/teacher",
    "output_dir": "out",
    "data": {"files": ["none/*.txt"]},
    "bin": {"low": 1, "high": 2},
}
OPTIONS = {
    "run": {"-h", "--help", "recipe", "--output-dir"},
    "demo": {"-h", "--help", "--output-dir"},
    "store-logits": {
        *("-h", "--help", "recipe", "--output-dir", "--kind", "--draws", "--k", "--seed", "--batch-size"),
    },
}
RESULTS = {
    "teacher": {"parameters": 2_000_000, "perplexity": 5.5},
    "student": {
        "parameters": 1_000_000,
        "tokens": 4096,
        "curve": [{"tokens": 0, "perplexity": 300.25}, {"tokens": 4096, "perplexity": 12.5}],
    },
}
BASELINE = {
    "baseline": {
        "parameters": 1_000_000,
        "tokens": 4096,
        "curve": [{"tokens": 0, "perplexity": 400.0}, {"tokens": 4096, "perplexity": 20.0}],
    },
    "to_match": {
        "perplexity": 20.0,
        "baseline_tokens": 4096,
        "baseline_flops": 6e12,
        "student_tokens": 1024,
        "student_flops": {"search": 5e11, "training": 1e12, "teacher": 1.5e12},
        "flops_ratio": 2.0,
        "tokens_ratio": 4.0,
    },
}


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def run_gives(monkeypatch):
    """A function that makes `run` return or raise what it is given, and keeps the recipes it got."""
    recipes = []

    def gives(outcome):
        def run(recipe):
            recipes.append(recipe)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(hf_whittle.run, "run", run)
        return recipes

    return gives


def options_of(parser):
    return {name for action in parser._actions for name in action.option_strings or [action.dest]}


def test_options_are_frozen():
    parser = make_parser()
    assert options_of(parser) == {"-h", "--help", "--version", "command"}
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    assert {name: options_of(command) for name, command in commands.items()} == OPTIONS
    assert set(COMMANDS) == set(OPTIONS)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run"]])
def test_wrong_usage_exits_2_and_shows_it(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: hf-whittle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        (yaml.safe_dump(RECIPE | {"teachr": "x"}), "unknown key 'teachr'; did you mean 'teacher'"),
        (yaml.safe_dump(RECIPE | {"baseline": "x"}), "baseline: expected bool, got 'x'"),
        ("- a list", "a recipe is a mapping of keys to values"),
        ("teacher: [unfinished\nbin: {", "is not YAML"),
    ],
)
def test_a_bad_recipe_is_one_line_and_exit_status_1(recipe_file, capsys, text, message):
    recipe_file.write_text(text)
    assert main(["run", str(recipe_file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hf-whittle: error: ") and message in captured.err
    assert captured.err.count("\n") == 1


def test_a_missing_teacher_is_an_error_without_traceback(recipe_file, capsys):
    (recipe_file.parent / "text.txt").write_text("text " * 1000)
    recipe = RECIPE | {"teacher": "nowhere/at_all", "data": {"files": ["text.txt"]}}
    recipe_file.write_text(yaml.safe_dump(recipe))
    assert main(["run", str(recipe_file)]) == 1
    error = capsys.readouterr().err
    assert "hf-whittle: error: " in error and "nowhere/at_all" in error


def test_an_error_of_the_run_is_one_line(recipe_file, run_gives, capsys):
    run_gives(BinError("no subnet fits"))
    assert main(["run", str(recipe_file)]) == 1
    assert capsys.readouterr().err == "hf-whittle: error: no subnet fits\n"


def test_an_error_of_ours_is_not_hidden(recipe_file, run_gives):
    run_gives(AssertionError("we broke it"))
    with pytest.raises(AssertionError, match="we broke it"):
        main(["run", str(recipe_file)])


def test_interruption_is_exit_status_130_and_says_how_to_go_on(recipe_file, run_gives, capsys):
    run_gives(KeyboardInterrupt())
    assert main(["run", str(recipe_file)]) == 130
    assert capsys.readouterr().err == "\nhf-whittle: interrupted; run the same command again to go on\n"


def test_output_dir_replaces_that_of_the_recipe(recipe_file, run_gives, capsys):
    recipes = run_gives(RESULTS)
    assert main(["run", str(recipe_file)]) == 0
    assert main(["run", str(recipe_file), "--output-dir", "elsewhere"]) == 0
    assert [recipe.output_dir for recipe in recipes] == ["out", "elsewhere"]
    assert capsys.readouterr().out.rstrip().endswith("The student, its card and the search are in elsewhere")


def table_of(output):
    return {line.split("  ")[0]: line.split()[-4:] for line in output.splitlines() if line}


def test_summary_without_a_baseline_says_what_is_known_alone(recipe_file, run_gives, capsys):
    run_gives(RESULTS)
    main(["run", str(recipe_file)])
    output = capsys.readouterr().out
    assert "random" not in output and "None" not in output
    assert table_of(output)["student"] == ["1,000,000", "300.250", "12.500", "4,096"]


def test_summary_says_what_matching_the_baseline_took(recipe_file, run_gives, capsys):
    run_gives(RESULTS | BASELINE)
    main(["run", str(recipe_file)])
    output = capsys.readouterr().out
    assert table_of(output)["student"] == ["12.500", "4,096", "1,024", "3.00e+12"]
    assert table_of(output)["random initialization"] == ["20.000", "4,096", "4,096", "6.00e+12"]
    assert "matched the baseline with 4.0 times fewer tokens; FLOPs ratio 2.00" in output


def test_summary_says_that_the_baseline_was_not_matched(recipe_file, run_gives, capsys):
    known = {name: BASELINE["to_match"][name] for name in ("perplexity", "baseline_tokens", "baseline_flops")}
    run_gives(RESULTS | BASELINE | {"to_match": known})
    main(["run", str(recipe_file)])
    assert "did not reach the baseline's final perplexity within its tokens" in capsys.readouterr().out


def test_summary_of_a_student_that_matched_without_training(recipe_file, run_gives, capsys):
    match = {name: value for name, value in BASELINE["to_match"].items() if name != "tokens_ratio"}
    run_gives(RESULTS | BASELINE | {"to_match": match | {"student_tokens": 0}})
    main(["run", str(recipe_file)])
    assert "matched the baseline with no training tokens at all" in capsys.readouterr().out


def test_installed_command_exits_as_main_does(recipe_file):
    command = [str(Path(sys.executable).with_name("hf-whittle")), "run", str(recipe_file.with_name("none.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("hf-whittle: error: cannot read the recipe")
