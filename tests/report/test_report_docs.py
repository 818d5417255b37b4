"""Commands and snippets of docs/report.md run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from hf_whittle.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0] for line in PAGE.splitlines() if line.startswith("hf-whittle report")]
(SNIPPET,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def runs(copy_of, tmp_path, monkeypatch):
    """Folders that the page names, as the current folder has them."""
    monkeypatch.chdir(tmp_path)
    return [copy_of("demo"), copy_of("demo-stock")]


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("command", [each for each in COMMANDS if "--prompt" not in each])
def test_commands_of_the_page_write_a_report(command, tmp_path):
    assert main(shlex.split(command)[1:]) == 0
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".html"]


@pytest.mark.slow
def test_command_with_a_prompt_has_the_students_text(teacher_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in Path(teacher_folder).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "results.json").write_text('{"student": {"parameters": 5}}')
    (command,) = [each for each in COMMANDS if "--prompt" in each]
    assert main(shlex.split(command)[1:]) == 0
    assert "<b>def read(self, path):</b>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_snippet_of_the_page_compares_two_runs(tmp_path):
    exec(SNIPPET, {})
    assert "demo, demo-stock" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
