"""Further teachers, trained like the demo's."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_teacher.py"


def teacher_of(folder: Path, *arguments: str) -> str:
    """Train a teacher with these arguments of the script, unless its folder exists; returns the folder."""
    if not (folder / "final").is_dir():
        command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *arguments, "--eval_strategy", "no"]
        subprocess.run(command, check=True)
    return str(folder / "final")
