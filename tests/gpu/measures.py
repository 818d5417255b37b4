"""Run one module's measurements, each isolated, and write every result as soon as it is known.

python -m tests.gpu.measures loss --record FILE [--skip NAME ...]
"""

import argparse
import gc
import importlib
import os
import time

import torch

from .comparing import use_ieee
from .recording import Lines, describe, loses_device

NAMES = ("loss", "search", "training", "demo")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measures", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--record", required=True)
    parser.add_argument("--skip", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    use_ieee()
    lines = Lines(options.record)
    cases = importlib.import_module(f".measure_{options.name}", __package__).cases()
    lines.write(planned=[f"{options.name}: {case}" for case in cases])
    for case, measure in cases.items():
        name = f"{options.name}: {case}"
        if name in options.skip:
            continue
        lines.write(started=name)
        started = time.perf_counter()
        result = {"id": name, "outcome": "passed"}
        lost = False
        try:
            result["figures"] = measure()
            if any("error" in row for row in result["figures"].values()):
                result["outcome"] = "failed"
        except Exception as error:
            result |= {"outcome": "failed", "error": describe(error)}
            lost = loses_device(error)
        lines.write(**result, seconds=round(time.perf_counter() - started, 2))
        if lost:
            os._exit(70)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
