"""Keys of a recipe on the command line, such as `--training.max_steps 100`."""

from collections.abc import Sequence
from typing import Any

from ..errors import RecipeError
from ..files.yaml import read_value

TAKE_KEYS = ("plan", "run", "search", "train", "store-logits")
"""Commands that read a recipe, any key of which can follow it."""

_USAGE = "give keys of the recipe as --training.max_steps 100"


def read_keys(arguments: Sequence[str]) -> dict[str, Any]:
    """Keys and values of a command line as a mapping, sections nested; values are read as in a recipe.

    Args:
        arguments (`Sequence[str]`): `--section.key value` or `--section.key=value`; a key without a value is true.

    Raises:
        RecipeError: if something else is among them, or a key is given twice.
    """
    found: dict[str, Any] = {}
    left = list(arguments)
    while left:
        key, given, text = left.pop(0).partition("=")
        if not key.startswith("--") or key == "--":
            raise RecipeError(f"unexpected argument {key + given + text!r}; {_USAGE}")
        if not given and left and not left[0].startswith("--"):
            given, text = "=", left.pop(0)
        _set(found, key[2:], read_value(text) if given else True)
    return found


def _set(values: dict[Any, Any], path: str, value: Any) -> None:
    *sections, name = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--{path}: {section} is given as a whole, too; {_USAGE}")
    if name in values:
        raise RecipeError(f"--{path} is given twice, or with keys of it; {_USAGE}")
    values[name] = value
