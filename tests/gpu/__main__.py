"""Test and measure everything that depends on the device; one JSON file says what came of it.

Tests run side by side in a process for each file, measurements one after another with the device to themselves. A
failure stops nothing: it stands in the file and in the summary, and the exit status is then 1.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = sorted(path.name for path in HERE.glob("test_*.py"))
MEASUREMENTS = ("loss", "training", "search")
CORES = os.cpu_count() or 1
TESTS_SHARE = 0.55
"""Largest share of the time for tests and demo; measurements have the rest."""
PACKAGES = ("accelerate", "datasets", "huggingface-hub", "liger-kernel", "numpy", "peft", "safetensors", "triton")
Results = dict[str, list[dict[str, Any]]]


def main() -> int:
    options = _options()
    began, deadline = time.monotonic(), time.monotonic() + options.seconds
    report: dict[str, Any] = {"about": __doc__.splitlines()[0], "environment": _environment()}
    report |= {"summary": {}, "tests": {}, "measurements": {}}

    def note(section: str, name: str, results: list[dict[str, Any]]) -> None:
        """Add results, and write the file."""
        report[section][name] = results
        report["summary"] = _summary(report, time.monotonic() - began)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n")
        counts = Counter(result["outcome"] for result in results)
        print(f"{time.monotonic() - began:6.1f} s  {name}: {dict(counts)}", flush=True)

    _run_tests(options, began + TESTS_SHARE * options.seconds, note)
    _run_measurements(options, deadline, note)
    _print_summary(report)
    return 1 if report["summary"].get("failed", 0) else 0


def _options() -> argparse.Namespace:
    import torch

    gpu, names = torch.cuda.is_available(), [*TESTS, *MEASUREMENTS, "demo"]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the JSON file (default: gpu.json)")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="parts to run (default: all)")
    parser.add_argument("--seconds", type=float, default=355.0 if gpu else 3600.0, help="time for everything together")
    parser.add_argument("--demo", action=argparse.BooleanOptionalAction, default=gpu, help="run hf-whittle demo too")
    parser.add_argument("--workers", type=int, default=max(1, min(8, CORES // 2)), help="test files in parallel")
    return parser.parse_args()


def _run_tests(options: argparse.Namespace, deadline: float, note: Any) -> None:
    """Run files of tests in parallel, and beside them the demo, which uses the device little."""
    from .launching import Job, run_job

    pytest = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "tests.gpu.recording", "-p", "no:cacheprovider")
    jobs = [
        Job(name, (*pytest, "--timeout", "120", f"tests/gpu/{name}"), "--deselect", threads=1)
        for name in TESTS
        if name in options.only
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        futures = {pool.submit(run_job, job, deadline): job for job in jobs}
        demo = pool.submit(run_job, _measurement("demo"), deadline) if options.demo and "demo" in options.only else None
        for future, job in futures.items():
            note("tests", job.name, future.result())
        if demo is not None:
            note("measurements", "demo", demo.result())


def _run_measurements(options: argparse.Namespace, deadline: float, note: Any) -> None:
    from .launching import run_job

    for name in MEASUREMENTS:
        if name in options.only:
            note("measurements", name, run_job(_measurement(name), deadline))


def _measurement(name: str) -> Any:
    from .launching import Job

    return Job(
        name, (sys.executable, "-m", "tests.gpu.measures", name), "--skip", threads=max(1, (os.cpu_count() or 2) // 2)
    )


def _environment() -> dict[str, Any]:
    import torch

    from ..benchmarks.measuring import environment

    found: dict[str, Any] = environment()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "cuda": torch.version.cuda,
            "gpu_gib": round(properties.total_memory / 2**30, 1),
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpus": torch.cuda.device_count(),
        }
    return found


def _all_results(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for section in ("tests", "measurements") for results in report[section].values() for one in results]


def _summary(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    results = _all_results(report)
    failures = [{"id": one["id"], **_first_error(one)} for one in results if one["outcome"] == "failed"]
    return {"seconds": round(seconds, 1), **Counter(one["outcome"] for one in results), "failures": failures}


def _first_error(result: dict[str, Any]) -> dict[str, Any]:
    """Error of a test or a measurement, or of its first failed row."""
    rows = [(row, figures) for row, figures in result.get("figures", {}).items() if "error" in figures]
    where, error = (None, result["error"]) if "error" in result else (rows[0][0], rows[0][1]["error"])
    return {"row": where, "type": error["type"], "message": _shortened(error["message"]), "at": error["traceback"][-1:]}


def _shortened(message: str, most: int = 200) -> str:
    return message if len(message) <= 2 * most else f"{message[:most]} [...] {message[-most:]}"


def _print_summary(report: dict[str, Any]) -> None:
    for results in report["measurements"].values():
        for one in results:
            for row, figures in one.get("figures", {}).items():
                short = {name: value for name, value in figures.items() if not isinstance(value, dict)}
                print(f"{one['id']} | {row}: {short}")
    skipped = Counter(one.get("reason") for one in _all_results(report) if one["outcome"] == "skipped")
    for reason, number in skipped.items():
        print(f"skipped {number}: {reason}")
    for failure in report["summary"]["failures"]:
        print(f"FAILED {failure['id']}: {failure['row'] or ''} {failure['type']}: {failure['message']} {failure['at']}")
    print({name: value for name, value in report["summary"].items() if name != "failures"})


if __name__ == "__main__":
    sys.exit(main())
