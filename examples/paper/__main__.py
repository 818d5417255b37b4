"""Run experiments by name, each resumable, or render the page of their results."""

import argparse
import dataclasses
import importlib
from collections.abc import Sequence

import torch

from hf_whittle.files.text import write_json

from .cache import environment
from .lab import Lab
from .sizes import SIZES

NAMES = ("headline", "healing", "ranking", "whole_searches", "spaces")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    parser.add_argument("names", nargs="*", choices=(*NAMES, "render"), default=[*NAMES, "render"], metavar="NAME")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="how much is measured")
    parser.add_argument("--seeds", type=int, help="seeds of the headline, fewer than the size has")
    parser.add_argument("--longest", type=int, help="its longest budget in steps")
    parser.add_argument("--bracketed", type=int, help="its longest budget whose learning rates are bracketed")
    given = parser.parse_args(arguments)
    size = SIZES[given.size]
    if given.seeds is not None:
        size = dataclasses.replace(size, seeds=given.seeds)
    if given.longest is not None:
        size = dataclasses.replace(size, steps=tuple(steps for steps in size.steps if steps <= given.longest))
    if given.bracketed is not None:
        size = dataclasses.replace(size, bracketed=given.bracketed)
    if size.device == "cpu":
        torch.set_num_threads(1)
    lab = Lab(size)
    for name in given.names:
        if name == "render":
            importlib.import_module(".render", __package__).main()
        else:
            measure(lab, name)


def measure(lab: Lab, name: str) -> None:
    """Run an experiment, and write its results after each part of it."""
    module = importlib.import_module(f".{name}", __package__)
    about = (module.__doc__ or "").strip()
    for results in module.run(lab):
        whole = {"about": about, "size": dataclasses.asdict(lab.size), "environment": environment(), **results}
        write_json(lab.results / f"{name}.json", whole)


if __name__ == "__main__":
    main()
