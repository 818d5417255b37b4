"""Items of a job that end their process or never end are reported, and the others still run."""

import sys
import time

import pytest

from .launching import Job, run_job
from .recording import loses_device

pytestmark = pytest.mark.gpu
SCRIPT = """
import json, os, sys, time
record, skipped = sys.argv[2], sys.argv[4::2]
def write(**line):
    with open(record, "a") as file:
        file.write(json.dumps(line) + "\\n")
write(planned=["good", "dies", "also good", "hangs", "never reached"])
for name in ["good", "dies", "also good", "hangs", "never reached"]:
    if name not in skipped:
        write(started=name)
        if name == "dies":
            print("last words", flush=True)
            os.abort()
        if name == "hangs":
            time.sleep(60)
        write(id=name, outcome="passed")
"""


def test_what_ends_its_process_is_reported_and_the_rest_is_run(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    job = Job("job", (sys.executable, str(script)), "--skip", threads=1)
    results = {result["id"]: result for result in run_job(job, time.monotonic() + 10)}
    outcomes = {name: result["outcome"] for name, result in results.items()}
    assert outcomes == {
        "good": "passed",
        "dies": "failed",
        "also good": "passed",
        "hangs": "failed",
        "never reached": "failed",
    }
    assert results["dies"]["error"]["type"] == "ProcessDied" and "last words" in results["dies"]["error"]["message"]
    assert results["hangs"]["error"]["type"] == results["never reached"]["error"]["type"] == "NoTimeLeft"


def test_job_that_plans_nothing_is_a_failure():
    job = Job("job", (sys.executable, "-c", "raise SystemExit('no such thing')"), "--skip", threads=1)
    (result,) = run_job(job, time.monotonic() + 30)
    assert (result["id"], result["outcome"]) == ("job", "failed") and "no such thing" in result["error"]["message"]


def test_device_is_lost_by_its_errors_but_not_for_want_of_memory():
    assert loses_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not loses_device(RuntimeError("CUDA error: out of memory"))
    assert not loses_device(ValueError("no device"))
