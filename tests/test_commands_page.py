"""The page of commands lists every command, its example and its recipe as they are."""

import re
import shlex
from pathlib import Path

import pytest

from hf_whittle.cli import COMMANDS, main, make_parser
from hf_whittle.cli.completion import PrintCompletion
from hf_whittle.cli.keys import TAKE_KEYS, read_keys
from hf_whittle.cli.launched import LAUNCHED
from hf_whittle.plan import draft
from hf_whittle.progress import LINES_EVERY
from hf_whittle.recipe import Recipe

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| `([^|]+)` \|$", PAGE, flags=re.MULTILINE))


def test_every_command_is_listed_in_its_order_with_the_example_of_its_help():
    assert list(ROWS.items()) == [(name, command.EXAMPLE) for name, command in COMMANDS.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_in_the_help_and_is_parsed(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    command = COMMANDS[name]
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and f"example:\n  {command.EXAMPLE}\n" in shown and command.HELP in shown
    program, *words = shlex.split(command.EXAMPLE)
    options, others = make_parser().parse_known_args(words)
    assert program == "hf-whittle" and options.command == name
    assert read_keys(others) or not others
    assert ("Any key of the recipe" in shown) is (name in TAKE_KEYS) and (name in TAKE_KEYS or not others)


def test_the_recipe_of_a_given_student_is_valid(tmp_path):
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.student == "my-student" and recipe.bin is None


def test_lines_of_bash_are_parsed(monkeypatch):
    (text,) = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    asked = []

    def print_completion(action, parser, namespace, shell, option=None):
        asked.append(shell)
        parser.exit(0)

    monkeypatch.setattr(PrintCompletion, "__call__", print_completion)
    for line in text.splitlines()[1:]:
        with pytest.raises(SystemExit):
            main(shlex.split(line.split(" > ")[0])[1:])
    assert asked == ["bash", "zsh"]


def listed(names):
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} and {last}"


def test_words_and_numbers_of_the_page_are_those_of_the_code():
    assert f"can follow {listed(TAKE_KEYS)}:" in PAGE and f"{listed(LAUNCHED)} also work" in PAGE
    assert f"a line each {LINES_EVERY:.0f} seconds" in PAGE
    assert f"{draft.WIDTHS[0]:.0%} around" in PAGE and f"up to {draft.WIDTHS[-1]:.0%}" in PAGE
    assert f"into {draft.SHARE:.0%} of the memory" in PAGE and f"it is {draft._FASTER} times as fast" in PAGE
    assert f"{draft.TOKENS_PER_PARAMETER} training tokens" in PAGE and f"take {draft.HOURS:.0f} hours" in PAGE
