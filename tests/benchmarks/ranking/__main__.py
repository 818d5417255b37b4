"""Run parts of a ranking study: `python -m tests.benchmarks.ranking real choose train evaluate rank`."""

import argparse
from dataclasses import asdict
from typing import Any

import torch

from hf_whittle.files.text import write_json

from ..measuring import environment
from . import __doc__ as about
from .real import REAL
from .rows import Rows
from .settings import RESULTS, Setting
from .study import Study, costs, ranks
from .toy import TOY

SETTINGS = {"real": (REAL,), "toy": TOY}
REFERENCES = {"real": "perplexity", "toy": "healed, 98,304 tokens, former"}
COMMANDS = ("choose", "choose_healed", "train", "evaluate", "rank")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ranking", description=__doc__)
    parser.add_argument("study", choices=SETTINGS)
    parser.add_argument("commands", nargs="+", choices=COMMANDS)
    parser.add_argument("--teachers", nargs="+", default=(), help="names of the teachers, all by default")
    parser.add_argument("--starts", nargs="+", default=(), choices=("sliced", "healed"), help="starts of trainings")
    parser.add_argument("--fitnesses", nargs="+", default=(), help="how the names of fitnesses to evaluate begin")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(RESULTS / f"ranking_{given.study}_rows.jsonl")
    settings = [s for s in SETTINGS[given.study] if not given.teachers or s.name in given.teachers]
    if not settings:
        known = ", ".join(setting.name for setting in SETTINGS[given.study])
        parser.error(f"--teachers: got {', '.join(given.teachers)}, the study has {known}")
    studies = [Study(setting, rows) for setting in settings]
    arguments = {"train": given.starts, "evaluate": given.fitnesses}
    for command in given.commands:
        if command == "rank":
            write_json(RESULTS / f"ranking_{given.study}.json", result(given.study, rows))
            continue
        for study in studies:
            getattr(study, command)(*([arguments[command]] if command in arguments else []))


def result(study: str, rows: Rows) -> dict[str, Any]:
    """The committed result of a study, from its rows alone."""
    known = list(rows.read().values())
    return {
        "about": (about or "").splitlines()[0],
        "environment": environment(),
        "results": {
            "settings": {setting.name: described(setting) for setting in SETTINGS[study]},
            "facts": rows.facts(),
            "costs": costs(known),
            "ranks": ranks(known, REFERENCES[study]),
        },
    }


def described(setting: Setting) -> dict[str, Any]:
    return {name: value for name, value in asdict(setting).items() if not callable(value)}


if __name__ == "__main__":
    main()
