"""The demo's text: the Python standard library of the running interpreter."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ..errors import DataError

# Third-party code, tests, and modules that are tables rather than text.
_LEFT_OUT = {
    "site-packages", "dist-packages", "lib-dynload", "__pycache__", "test", "tests", "idle_test", "encodings",
    "pydoc_data",
}  # fmt: skip

# Shares of the modules that the bundled teacher never saw: one to search on, one to report on.
HELD_OUT = {"search": 0.05, "test": 0.05}


def standard_library() -> Dataset:
    """The modules of the standard library as documents.

    Returns:
        `datasets.Dataset`: columns `name` (dotted module name) and `text`, sorted by name.

    Raises:
        DataError: if the interpreter carries no Python source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if not _LEFT_OUT.intersection(parts):
            modules.append((".".join(parts), str(path), path.stat().st_mtime_ns))
    if not modules:
        raise DataError(
            f"found no Python source under {root}; run the demo with an interpreter that carries its library"
        )
    return Dataset.from_generator(_read, gen_kwargs={"modules": sorted(modules)})


def _read(modules: list[tuple[str, str, int]]) -> Iterator[dict[str, str]]:
    """The documents; the time of a file's last change is there for `datasets` to notice it in its cache."""
    for name, path, _ in modules:
        try:
            yield {"name": name, "text": Path(path).read_text(encoding="utf-8")}
        except (UnicodeDecodeError, OSError):
            continue  # a module in another encoding, or one we may not read: not worth failing a demo for
