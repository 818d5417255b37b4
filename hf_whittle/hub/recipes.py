"""Recipes without paths of this machine, for publication."""

from pathlib import Path
from typing import Any

from ..files.paths import is_local
from ..files.yaml import as_yaml, read_yaml


def publishable(path: str | Path) -> str:
    """A recipe as YAML in which each path of this machine is its last name after `./`.

    The recipe need not be valid here.

    Raises:
        RecipeError: if the file is not YAML with keys and values.
    """
    values = _without_absolute_paths(read_yaml(path))
    data = values.get("data")
    data = data if isinstance(data, dict) else {}
    several: Any = data.get("sources")
    sources = [data, *(each for each in (several if isinstance(several, list) else ()) if isinstance(each, dict))]
    models = ((values, name) for name in ("teacher", "student", "supernet"))
    for section, key in (*models, *((source, "dataset") for source in sources)):
        if isinstance(section.get(key), str) and is_local(section[key]):
            section[key] = _last_name(section[key])
    for name in ("output_dir", "teacher_store"):
        if isinstance(values.get(name), str):
            values[name] = _last_name(values[name])
    for source in sources:
        if isinstance(source.get("files"), list):
            source["files"] = [_last_name(str(pattern)) for pattern in source["files"]]
    return as_yaml(values)


def _last_name(path: str) -> str:
    return f"./{Path(path).expanduser().resolve().name}"


def _without_absolute_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_absolute_paths(each) for each in value]
    return _last_name(value) if isinstance(value, str) and (Path(value).is_absolute() or value[:2] == "~/") else value
