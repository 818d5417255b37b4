"""Text and JSON files, written atomically."""

import json
from pathlib import Path
from typing import Any

from .atomic import atomic_path
from .paths import expanded


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON from `path`."""
    return json.loads(Path(expanded(path)).read_text(encoding="utf-8"))
