"""A pytest plugin that writes the result of each test as a line of JSON, as soon as it is known.

pytest -p tests.gpu.recording --record FILE
"""

import json
import os
import traceback
from typing import Any

import pytest

_LOST = ("CUDA error", "device-side assert", "illegal memory access", "cuDNN error", "CUBLAS_STATUS")

_OF_PYTEST = ("/_pytest/", "/pluggy/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", help="file to append to")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(config.getoption("--record")))


class Lines:
    """A file of lines of JSON, on disk as soon as each is written."""

    def __init__(self, path: str):
        self._path = path

    def write(self, **values: Any) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(values) + "\n")


def describe(error: BaseException) -> dict[str, Any]:
    """Type, message and the last frames of an error."""
    frames = [
        f"{at.filename}:{at.lineno} {at.name}"
        for at in traceback.extract_tb(error.__traceback__)
        if not any(part in at.filename for part in _OF_PYTEST)
    ]
    return {"type": type(error).__name__, "message": str(error)[:1500], "traceback": frames[-10:]}


def loses_device(error: BaseException) -> bool:
    """Whether an error makes the device unusable for this process."""
    return "out of memory" not in str(error) and any(word in str(error) for word in _LOST)


class Recorder:
    """Writes the planned tests, the start of each, and its result, the worst of its phases.

    After an error that makes the device unusable, the process ends; the remaining tests need another one.
    """

    def __init__(self, path: str):
        self._lines = Lines(path)
        self._result: dict[str, Any] = {}
        self._is_lost = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            error = {"type": "CollectionError", "message": str(report.longrepr)[-1500:], "traceback": []}
            self._lines.write(id=report.nodeid, outcome="failed", error=error)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._lines.write(planned=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._result = {"id": nodeid, "outcome": "passed", "seconds": 0.0}
        self._lines.write(started=nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        self._result["seconds"] = round(self._result["seconds"] + report.duration, 3)
        if report.skipped and hasattr(report, "wasxfail"):
            self._result |= {"outcome": "xfailed", "reason": report.wasxfail}
        elif report.skipped:
            self._result |= {"outcome": "skipped", "reason": report.longrepr[2].removeprefix("Skipped: ")}
        elif report.failed and self._result["outcome"] != "failed":
            self._result["outcome"] = "failed"
            if call.excinfo is None:
                self._result["error"] = {"type": "Failed", "message": str(report.longrepr)[:1500], "traceback": []}
            else:
                self._result["error"] = describe(call.excinfo.value)
                self._is_lost |= loses_device(call.excinfo.value)
        return report

    def pytest_runtest_logfinish(self) -> None:
        self._lines.write(**self._result)
        if self._is_lost:
            os._exit(70)
