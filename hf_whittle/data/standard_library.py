"""The standard library of the running interpreter, which is the text of the demo."""

import sysconfig
from pathlib import Path

from datasets import Dataset

from ..errors import DataError
from .text_files import documents_from_files

# Third-party code, tests, and modules that hold tables rather than text.
_EXCLUDED = {
    "site-packages", "dist-packages", "lib-dynload", "__pycache__", "test", "tests", "idle_test", "encodings",
    "pydoc_data",
}  # fmt: skip

# Shares of the modules that the bundled teacher was not trained on: one to search on, one to report on.
HELD_OUT = {"search": 0.05, "test": 0.05}


def standard_library() -> Dataset:
    """Load the modules of the standard library as documents.

    Returns:
        `datasets.Dataset`: columns `name` (dotted module name) and `text`, sorted by name.

    Raises:
        DataError: if the interpreter has no Python source files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if not _EXCLUDED.intersection(parts):
            modules[".".join(parts)] = str(path)
    if not modules:
        raise DataError(f"found no Python source under {root}; run the demo with an interpreter that has its library")
    return documents_from_files(dict(sorted(modules.items())), errors="replace")
