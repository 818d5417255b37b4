"""The wheel has all that the package needs, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 10_000_000


@pytest.mark.slow
def test_the_wheel_has_the_package_with_its_data_and_no_tests(tmp_path):
    for name in ("hf_whittle", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("a wheel is built with setuptools 77 or newer, which pip has to download")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "hf_whittle").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert wheel.stat().st_size < LARGEST
