"""The memory of a stream does not depend on the length of its text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_processes import environment_of_scripts

SCRIPT = Path(__file__).with_name("streaming_peak.py")
DOCUMENT = 5_000


def write(path, megabytes):
    """Documents of 5,000 letters, each of which begins with its number."""
    with path.open("w") as file:
        for number in range(megabytes * 1_000_000 // DOCUMENT):
            file.write(json.dumps({"text": f"{number:09d} ".ljust(DOCUMENT, "qxz"[number % 3])}) + "\n")
    return path


def read_all(path, megabytes):
    """Peak memory and more of a process that reads as many blocks as a file has bytes for."""
    blocks = int(megabytes * 1_000_000 * 0.98) // 1024
    command = [sys.executable, str(SCRIPT), str(path), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of_scripts(), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_six_times_the_text_takes_the_same_memory(tmp_path):
    small, large = (read_all(write(tmp_path / f"{size}.jsonl", size), size) for size in (40, 240))
    assert small["held_out"] == large["held_out"] == {"search": 64, "test": 256}
    assert large["sum"] == pytest.approx(6 * small["sum"], rel=0.1)
    assert large["peak"] < small["peak"] + 40, "all blocks would take 800 MB more, all text 200 MB"
