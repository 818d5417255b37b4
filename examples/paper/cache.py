"""Results kept by content: the key of each is a hash of the code that determines it, of its settings and its text."""

import ast
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_whittle
from hf_whittle.files.atomic import atomic_path
from hf_whittle.files.text import read_json, write_json

HERE = Path(__file__).parent
RUNS = HERE / "runs"
PACKAGE = Path(hf_whittle.__file__).parent


class Cache:
    """Results in a folder, each a JSON file, some with weights beside it.

    Args:
        folder (`Path`): the folder.
        inputs (`dict`): what all results depend on: text, teacher, device.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]):
        self.folder, self.inputs = folder, inputs

    def key(self, kind: str, settings: dict[str, Any], code: Iterable[str]) -> str:
        """Hash of a result's settings and inputs, and of the rooms of `hf_whittle` and modules here that make it."""
        parts = {
            "kind": kind,
            "settings": settings,
            "inputs": self.inputs,
            "code": {name: digest(name) for name in code},
        }
        text = json.dumps({**parts, "torch": torch.__version__}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def once(
        self, kind: str, settings: dict[str, Any], code: Iterable[str], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The facts that `work` returns, from disk if it was done before; tensors among them are kept too."""
        key = self.key(kind, settings, code)
        path = self.folder / kind / f"{key}.json"
        if not path.is_file():
            started = time.perf_counter()
            facts = work()
            weights = facts.pop("weights", None)
            if weights is not None:
                with atomic_path(path.with_suffix(".safetensors")) as temporary:
                    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, temporary)
            seconds = round(time.perf_counter() - started, 1)
            made = {"seconds": seconds, **environment()}
            write_json(path, {"key": key, "settings": settings, "made": made, **facts})
            shown = [f"{name} {value}" for name, value in (settings | facts).items() if isinstance(value, int | float)]
            print(time.strftime("%H:%M:%S"), kind, ", ".join(shown), f"({seconds} s)", flush=True)
        return read_json(path)

    def weights(self, kind: str, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Tensors that were kept with some facts."""
        return load_file(self.folder / kind / f"{facts['key']}.safetensors")


@cache
def digest(name: str) -> str:
    """Hash of the code of a room of `hf_whittle`, or of a module here (`paper.training`), without comments."""
    root = HERE / name.removeprefix("paper.") if name.startswith("paper.") else PACKAGE / name
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    return hashlib.sha256("\n".join(f"{file.name} {_code(file.read_text())}" for file in files).encode()).hexdigest()


def _code(text: str) -> str:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree)


@cache
def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit,
    }
