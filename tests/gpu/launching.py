"""Run jobs in processes that record results line by line; one that died is restarted without the fatal item."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NO_TIME = "no time left"


@dataclass(frozen=True)
class Job:
    """A command that takes `--record FILE` and items to leave out.

    Args:
        name (`str`): name of the job.
        command (`tuple[str, ...]`): command line, run in the repository's root.
        skip (`str`): option that names one item to leave out.
        threads (`int`): number of CPU threads.
    """

    name: str
    command: tuple[str, ...]
    skip: str
    threads: int


def run_job(job: Job, deadline: float) -> list[dict[str, Any]]:
    """Run a job until each planned item has a result; restart it without items that ended its process.

    Args:
        job (`Job`): the job.
        deadline (`float`): time of `time.monotonic()`; items without a result by then are reported as failed.
    """
    results: dict[str, dict[str, Any]] = {}
    planned: list[str] = []
    while True:
        lines, end = _run_once(job, list(results), deadline)
        planned = planned or next((line["planned"] for line in lines if "planned" in line), [])
        before = len(results)
        results |= {line["id"]: line for line in lines if "id" in line}
        missing = [name for name in planned if name not in results]
        if planned and not missing:
            return [results.pop(name) for name in planned] + list(results.values())
        begun = [line["started"] for line in lines if "started" in line and line["started"] not in results]
        for name in begun:
            results[name] = _died(name, end)
        if not planned or len(results) == before or time.monotonic() >= deadline:
            rest = [name for name in planned if name not in results] or ([] if planned or results else [job.name])
            return [*results.values(), *(_died(name, end) for name in rest)]


def _died(name: str, end: str) -> dict[str, Any]:
    kind = "NoTimeLeft" if end.startswith(NO_TIME) else "ProcessDied"
    error = {"type": kind, "message": end, "traceback": []}
    return {"id": name, "outcome": "failed", "seconds": None, "error": error}


def _run_once(job: Job, done: list[str], deadline: float) -> tuple[list[dict[str, Any]], str]:
    """Run one process; returns the lines it recorded, and how it ended."""
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        record, output = Path(folder) / "lines", Path(folder) / "output"
        record.touch()
        skipped = [argument for name in done for argument in (job.skip, name)]
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
        with output.open("w") as file:
            process = subprocess.Popen(
                [*job.command, "--record", str(record), *skipped],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: Any = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = NO_TIME
            finally:
                _end(process)
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        said = [line for line in output.read_text(errors="replace").splitlines() if "Extension modules:" not in line]
        return lines, f"{code}: {chr(10).join(said)[-3000:]}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and those it started."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it started
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
