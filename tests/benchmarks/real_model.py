"""Every stage on a real pretrained model: seconds, peak memory and perplexity, on one thread."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_MODEL = "HF_WHITTLE_REAL_MODEL"


def measure() -> dict[str, Any]:
    """Run the tests marked `real`, on the checkpoint whose folder `HF_WHITTLE_REAL_MODEL` names."""
    if _MODEL not in os.environ:
        raise SystemExit(f"set {_MODEL} to the folder of a checkpoint, such as one of SmolLM2-135M")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_WHITTLE_REAL_REPORT": str(report)}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "real", "tests/real"]
        subprocess.run(command, env=environment, check=True)
        stages = [json.loads(line) for line in report.read_text().splitlines()]
    config = json.loads((Path(os.environ[_MODEL]) / "config.json").read_text())
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {"model": {name: config.get(name) for name in names}, "stages": stages}
