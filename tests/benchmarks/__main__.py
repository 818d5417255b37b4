"""Run benchmarks by name, all of them by default, and write their results beside them."""

import argparse
import importlib
import json
from pathlib import Path

from .measuring import environment

NAMES = (
    "slices",
    "batches",
    "compiled",
    "sampling",
    "distillation_loss",
    "training_speed",
    "distillation_targets",
    "store",
    "extraction",
    "search",
    "supernet_training",
    "moments",
    "healing",
    "healed_start",
    "healed_recovery",
    "search_fitness",
    "demo_budgets",
    "demo_vocabulary",
    "busy",
    "crash",
)
BY_NAME = ("real_model", "recovery", "vocabulary", "frontier", "whole_searches", "plan")
"""Run by name alone, since they need a checkpoint, or 6 GB of memory (`plan`).

`ranking`, which takes a day, has commands of its own.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=(*NAMES, *BY_NAME), default=NAMES)
    for name in parser.parse_args().names:
        module = importlib.import_module(f".{name}", __package__)
        print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
        measured = module.measure()  # which may set the number of threads
        results = {"about": module.__doc__.splitlines()[0], "environment": environment(), "results": measured}
        text = json.dumps(results, indent=2)
        print(text, flush=True)
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
