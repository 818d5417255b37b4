"""Teachers beside the demo's own, trained as it was."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_teacher.py"


def teacher_of(folder: Path, *arguments: str) -> str:
    """The folder of a teacher trained with these arguments of the script; trained if it is not there."""
    if not (folder / "final").is_dir():
        command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), *arguments, "--eval_strategy", "no"]
        subprocess.run(command, check=True)
    return str(folder / "final")
