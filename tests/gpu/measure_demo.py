"""`hf-whittle demo` end to end."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .launching import ROOT
from .measuring import Rows


def cases() -> dict[str, Callable[[], Rows]]:
    return {"end to end": _run}


def _run() -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "demo"
        command = [sys.executable, "-c", "import sys; from hf_whittle.cli import main; sys.exit(main())", "demo"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--output-dir", str(output)], capture_output=True, text=True, env=environment, check=False
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr[-1200:]}")
        return {"demo": {"seconds": round(seconds, 1), "results": json.loads((output / "results.json").read_text())}}
