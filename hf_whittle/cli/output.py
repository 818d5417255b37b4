"""Output of commands: text for people on stdout or, with `--json`, one JSON object for programs."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..processes import is_first


@dataclass(frozen=True)
class Outcome:
    """What a command did or found.

    Args:
        facts (`dict`): facts for programs.
        text (`str`): the same for people.
    """

    facts: dict[str, Any]
    text: str


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command, which returns an `Outcome`, be asked for JSON."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout and all else on stderr, for programs"
    )


def print_outcome(work: Callable[[argparse.Namespace], Outcome | None], options: argparse.Namespace) -> None:
    """Do the work of a command, and print its outcome once for all processes."""
    as_json = getattr(options, "json", False)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        outcome = work(options)
    if outcome is not None and is_first():
        print(json.dumps(_finite(outcome.facts), indent=2, allow_nan=False) if as_json else outcome.text)


def _finite(value: Any) -> Any:
    """A value of JSON, which knows neither NaN nor infinity; `None` stands for them."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def aligned(rows: list[tuple[str, ...]], words: int = 1) -> list[str]:
    """Lines of a table: the first columns, which hold words, to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
