"""Write api.md beside this file from the docstrings of all public names, as `make pages` does."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import hf_whittle
from hf_whittle import errors
from hf_whittle.architectures.registry import ARCHITECTURES
from hf_whittle.files.text import write_text

PAGE = Path(__file__).parent / "api.md"
ROOMS = {
    "models": ("Super-networks and subnets", "concepts.md#super-networks"),
    "subnet": ("Super-networks and subnets", "concepts.md#super-networks"),
    "space": ("Search spaces and bins", "search.md#search-spaces-and-bins"),
    "cost": ("Search spaces and bins", "search.md#search-spaces-and-bins"),
    "importance": ("Importance", "search.md#importance"),
    "search": ("Search", "search.md#algorithms"),
    "fitness": ("Fitness", "fitness-and-healing.md#fitness"),
    "extraction": ("Students and healing", "students.md"),
    "healing": ("Students and healing", "students.md"),
    "distillation": ("Distillation", "distillation.md"),
    "training": ("Trainings of your own", "distillation.md#super-network-training"),
    "hub": ("Publishing", "publishing.md"),
}
"""Heading and page of the public names that a room of the package defines."""
MODULES = {
    "architectures": "adding-an-architecture.md",
    "data": "text.md",
    "cost": "costs.md",
    "evaluation": "evaluation.md",
    "plan": "costs.md#the-plan-of-a-recipe",
    "recipe": "recipes.md",
    "run": "recipes.md",
    "vocabulary": "vocabulary.md",
    "report": "report.md",
}
"""Public modules whose names are imported from them, with the page about each."""


def render() -> str:
    """The whole page."""
    tables: dict[str, list[str]] = {}
    classes = hf_whittle.__all__
    of_architectures = {name for name in classes if _is_of_an_architecture(name)}
    for name in sorted(set(classes) - of_architectures, key=str.lower):
        defined = getattr(hf_whittle, name)
        heading, page = ROOMS[defined.__module__.split(".")[1]]
        tables.setdefault(f"[{heading}]({page})", []).append(_row(name, defined))
    parts = [
        "# Python API\n\nThe first sentence of each docstring; `help(name)` has arguments, shapes, units and errors. "
        "Written by `make pages`.",
        "Names of `hf_whittle`:",
    ]
    for heading in dict.fromkeys(f"[{heading}]({page})" for heading, page in ROOMS.values()):
        parts.append(f"## {heading}\n\n" + _table(tables[heading]))
    parts.append(
        "## [Classes of an architecture](concepts.md#architectures)\n\n"
        "A super-network, and the configuration and model of students that no stock class can hold:\n\n"
        + "\n".join(f"- {', '.join(names)}" for names in _by_architecture(of_architectures))
    )
    for name, page in MODULES.items():
        module = importlib.import_module(f"hf_whittle.{name}")
        parts.append(f"## [`hf_whittle.{name}`]({page})\n\n" + _table(_rows(module, module.__all__)))
    names = [name for name, defined in vars(errors).items() if inspect.isclass(defined)]
    parts.append("## [`hf_whittle.errors`](faq.md)\n\n" + _table(_rows(errors, names)))
    return "\n\n".join(parts) + "\n"


def _is_of_an_architecture(name: str) -> bool:
    return name.startswith("Whittle") or (name.endswith("SuperNetForCausalLM") and not name.startswith("Auto"))


def _by_architecture(names: set[str]) -> list[list[str]]:
    found = []
    for supernet in sorted(name for name in names if not name.startswith("Whittle")):
        stem = supernet.removesuffix("SuperNetForCausalLM")
        found.append([f"`{name}`" for name in (supernet, f"Whittle{stem}Config", f"Whittle{stem}ForCausalLM")])
    assert len(found) == len(ARCHITECTURES) and {name.strip("`") for row in found for name in row} == names
    return found


def _rows(module: ModuleType, names: list[str]) -> list[str]:
    return [_row(name, getattr(module, name)) for name in names]


def _row(name: str, defined: object) -> str:
    """A line of a table: the first sentences of a docstring, or the value of a constant."""
    text = inspect.getdoc(defined) if callable(defined) else f"`{defined!r}`"
    return f"| `{name}` | {' '.join(text.partition(chr(10) * 2)[0].split())} |"


def _table(rows: list[str]) -> str:
    return "\n".join(["| name | |", "| --- | --- |", *rows])


if __name__ == "__main__":
    write_text(PAGE, render())
