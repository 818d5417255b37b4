"""Programs killed at every change of a file: whether they end as a run never stopped, once started again.

Each is killed before an event (a file opened, appended to, renamed or removed, a folder made or removed) and, where a
file is written, with half of it; then it goes on. `transformers.Trainer` stands beside them for comparison.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "crash" / "kill_everywhere.py"
RUNS: tuple[tuple[str, ...], ...] = (
    ("DistillationTrainer",),
    ("SupernetTrainer",),
    ("hf-whittle run", "--points", "80"),
    ("store_targets",),
    ("DistillationTrainer", "--processes", "2", "--points", "10"),
    ("transformers.Trainer", "--points", "24"),
)


def measure() -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reports = []
    for run in RUNS:
        done = subprocess.run([sys.executable, str(SCRIPT), *run], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr)
        reports.append(_brief(json.loads(done.stdout)))
    return {"versions": {name: version(name) for name in ("accelerate", "safetensors", "datasets")}, "runs": reports}


def _brief(report: dict[str, Any]) -> dict[str, Any]:
    """Results without seconds; of a failure, only its place."""
    failures = report.pop("failures")
    del report["seconds"]
    return report | ({"not survived": [failure["at"] for failure in failures]} if failures else {})
