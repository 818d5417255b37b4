"""A report as one HTML page."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from ..errors import CheckpointError, OutputError, WhittleError
from ..files.paths import expanded
from ..files.text import write_text

if TYPE_CHECKING:
    from .blocks import Section
    from .folder import Run

GENERATOR = "hf_whittle report"
_TEMPLATE, _STYLE = "page.html.jinja", "style.css"
_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


def write_report(
    folders: Sequence[str | Path], output: str | Path = "report.html", *, prompts: Sequence[str] = ()
) -> Path:
    """Write a report on a run, or on several beside each other, as one HTML page that needs no network.

    Args:
        folders (`Sequence[str | Path]`): folders of runs, of students or of searches.
        output (`str` or `Path`, *optional*, defaults to `"report.html"`): the page; an earlier report is replaced.
        prompts (`Sequence[str]`, *optional*): prompts that the students continue, instead of the samples in their
            folders.

    Returns:
        `Path`: the page.

    Raises:
        ImportError: if plotly is not installed.
        OutputError: if `output` is a folder or no report, or cannot be written.
        CheckpointError: if a folder is missing, holds nothing to report, or has a damaged file.
    """
    _require_plotly()
    path = Path(expanded(output))
    _check_output(path)
    from .folder import load_runs
    from .samples import continue_prompts

    runs = load_runs(folders)
    if prompts:
        runs = [replace(run, samples=tuple(continue_prompts(run.folder, prompts))) for run in runs]
    write_text(path, render(runs))
    return path


def _require_plotly() -> None:
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError("a report needs plotly: pip install 'hf_whittle[report]'") from error


def _check_output(path: Path) -> None:
    """Raise `OutputError` unless a report can be written to a path without replacing a file of another kind."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file, such as {path / 'report.html'}")
    if path.is_file():
        with path.open("rb") as stream:
            if GENERATOR.encode() not in stream.read(4096):
                raise OutputError(f"{path} is no report of hf_whittle; remove it, or give another --output")


def render(runs: Sequence["Run"]) -> str:
    """The page of some runs.

    Raises:
        CheckpointError: if facts of a run are not what they should be, or there are none.
    """
    from plotly.offline import get_plotlyjs

    title, plotly = ", ".join(run.name for run in runs), get_plotlyjs()
    sections, figures = _drawn(runs, title)
    scripts = [plotly, *(script for figure in figures.values() for script in _SCRIPT.findall(figure))]
    folder = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(_TEMPLATE).render(
        title=title,
        several=len(runs) > 1,
        generator=GENERATOR,
        policy=_policy(scripts),
        style=_STYLE,
        plotly=plotly,
        sections=sections,
        figures=figures,
    )


def _drawn(runs: Sequence["Run"], names: str) -> tuple[list["Section"], dict[str, str]]:
    """The sections of some runs, and the HTML of their figures."""
    from .sections import make_sections

    try:
        sections = make_sections(runs)
        figures = {figure.anchor: figure.html for section in sections for figure in section.figures}
    except WhittleError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot report on {names}: facts are damaged, or of another version ({error!r})"
        ) from error
    if not sections:
        raise CheckpointError(f"the files of {names} have no facts to report")
    return sections, figures


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which a page runs these scripts and no other, and loads nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    loads = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"{loads}; script-src {allowed}"
