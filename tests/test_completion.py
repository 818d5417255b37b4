"""Completion in a real bash."""

import shutil
import subprocess
import sys

import pytest

from hf_whittle.cli import COMMANDS, main
from hf_whittle.cli.completion import recipe_keys
from hf_whittle.recipe import Recipe

TRY = """
source completion.bash
complete -p hf-whittle >/dev/null || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
"$(complete -p hf-whittle | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the script of bash, a recipe and a student's folder."""
    folder = tmp_path_factory.mktemp("completion")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(words))
        with pytest.raises(SystemExit) as caught:
            main(["--print-completion", "bash"])
    assert caught.value.code == 0
    (folder / "completion.bash").write_text("\n".join(map(str, printed)))
    (folder / "recipe.yaml").write_text("")
    (folder / "student").mkdir()
    return folder


@pytest.fixture
def complete(folder):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed; apt-get install bash")

    def complete(*words):
        done = subprocess.run(
            ["bash", "-c", TRY, "bash", "hf-whittle", *words], cwd=folder, capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    return complete


@pytest.mark.parametrize(
    "words, completed",
    [
        (["s"], {"search", "store-logits"}),
        (["extract", "x", "--format", ""], {"auto", "stock", "whittle", "padded"}),
        (["run", "rec"], {"recipe.yaml"}),
        (["train", "recipe.yaml", "--student", "st"], {"student"}),
        (["train", "recipe.yaml", "--stu"], {"--student"}),
        (["run", "recipe.yaml", "--training.max_s"], {"--training.max_steps"}),
        (["plan", "recipe.yaml", "--search.gener"], {"--search.generations"}),
        (["push", "student", "me/student", "--dry"], {"--dry-run"}),
        (["info", "student", "--training.max_s"], set()),
    ],
    ids=lambda words: " ".join(sorted(words) if isinstance(words, set) else words),
)
def test_bash_completes_commands_options_keys_and_files(complete, words, completed):
    assert complete(*words) == completed


def test_bash_completes_every_command(complete):
    assert complete("") >= COMMANDS.keys()


def test_zsh_has_a_script_that_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", "zsh"])
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef hf-whittle") and all(f" {name}) _arguments" in printed for name in COMMANDS)


def test_keys_are_those_that_recipes_take():
    keys = list(recipe_keys())
    assert len(keys) == len(set(keys)) and {"teacher", "bin.low", "training.bf16", "search.seed"} <= set(keys)
    fields = set(Recipe.__dataclass_fields__)
    assert {key.split(".")[0] for key in keys} == fields


def test_without_the_library_it_is_said_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    said = capsys.readouterr()
    assert caught.value.code == 1 and said.out == "" and "pip install 'hf_whittle[completion]'" in said.err
