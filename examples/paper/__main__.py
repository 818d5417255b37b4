"""Run experiments by name, each resumable, or render the page of their results."""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from hf_whittle.files.text import write_json

from .cache import environment
from .lab import Lab
from .sizes import SIZES, Size

NAMES = (
    "headline",
    "healing",
    "distillation",
    "teachers",
    "downstream",
    "ranking",
    "whole_searches",
    "spaces",
    "scalability",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    parser.add_argument("names", nargs="*", choices=(*NAMES, "render"), default=[*NAMES, "render"], metavar="NAME")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="how much is measured")
    parser.add_argument("--seeds", type=int, help="seeds, if fewer than the size has")
    parser.add_argument("--longest", type=int, help="longest budget of the headline in steps, if shorter")
    parser.add_argument("--bracketed", type=int, help="longest budget of the headline whose rates are bracketed")
    parser.add_argument("--key", action="store_true", help="whether the headline has its key arms alone")
    given = parser.parse_args(arguments)
    lab = Lab(size_of(given))
    if lab.device.type == "cpu":
        torch.set_num_threads(1)
    for name in given.names:
        if name == "render":
            importlib.import_module(".render", __package__).main()
        else:
            measure(lab, name)


def size_of(given: argparse.Namespace) -> Size:
    """The size, as far as it is wanted."""
    size = SIZES[given.size]
    if given.seeds is not None:
        size = replace(size, seeds=min(given.seeds, size.seeds), repeats=min(given.seeds, size.repeats))
    if given.longest is not None:
        steps, others = ([n for n in each if n <= given.longest] for each in (size.steps, size.other_steps))
        size = replace(size, steps=tuple(steps), other_steps=tuple(others))
    if given.bracketed is not None:
        size = replace(size, bracketed=given.bracketed)
    return replace(size, other_steps=()) if given.key else size


def measure(lab: Lab, name: str) -> None:
    """Run an experiment, and write its results after each part of it."""
    module = importlib.import_module(f".{name}", __package__)
    about = (module.__doc__ or "").strip()
    for results in module.run(lab):
        whole = {"about": about, "size": asdict(lab.size), "environment": environment(), **results}
        write_json(lab.results / f"{name}.json", whole)


if __name__ == "__main__":
    main()
