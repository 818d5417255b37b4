"""Parsing of a recipe: keys and values of YAML into dataclasses, each checked against the type of its field."""

import collections.abc
import dataclasses
import difflib
import os
import types
import typing
from typing import Any, Literal

from ..errors import RecipeError
from ..files.yaml import Word, with_truth_values
from ..healing.config import HealingConfig

_LISTS = (list, collections.abc.Sequence)


def parse(cls: Any, values: Any, where: str) -> Any:
    """Make a dataclass from a mapping, with its sections.

    Args:
        cls (`type`): the dataclass.
        values (`dict`): the mapping.
        where (`str`): path of the mapping in the recipe, such as `"data"`; empty for the recipe itself.

    Raises:
        RecipeError: if a key is unknown or missing, or a value is of another type or out of range.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{where or 'recipe'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {item.name: hints[item.name] for item in dataclasses.fields(cls)}
    parsed = parse_values(known, values, where)
    required = [
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in parsed]
    if missing:
        raise RecipeError(f"{where or 'recipe'}: missing {', '.join(missing)}; it needs {', '.join(required)}")
    try:
        return cls(**parsed)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def parse_values(known: dict[str, Any], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check the keys and values of a mapping against `known`, the types of its keys; errors as for `parse`."""
    parsed = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise RecipeError(f"unknown key {path!r}; did you mean {nearest[0]!r}? Valid here: {_short(sorted(known))}")
        parsed[name] = _convert(value, known[name], path)
    return parsed


def _convert(value: Any, hint: Any, path: str) -> Any:
    """The value of a key as its type says; sections become dataclasses."""
    if hasattr(hint, "parse"):  # a section with a notation of its own
        return hint.parse(value, path)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, path)
    optional = _optional_section(hint)
    if optional is not None and value is not None:
        return parse(optional, value, path)
    section = _section_of_list(hint)
    if section is not None and value is not None:
        if not isinstance(value, list):
            raise RecipeError(f"{path}: expected a list of keys and values, got {value!r}")
        return [parse(section, item, f"{path}[{number}]") for number, item in enumerate(value)]
    value = _read_word(value, hint)
    if HealingConfig in typing.get_args(hint) and not isinstance(value, bool):
        if not isinstance(value, dict):
            raise RecipeError(f"{path}: expected true, false or fields of HealingConfig, got {value!r}")
        return parse(HealingConfig, value, path)
    value = _read_value(value, hint, path)
    if not _matches(value, hint):
        raise RecipeError(f"{path}: expected {_expected(value, hint)}")
    return value


def _optional_section(hint: Any) -> Any:
    """The dataclass that a key holds, or nothing; `None` for any other key."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    return options[0] if len(options) == 1 and dataclasses.is_dataclass(options[0]) else None


def _section_of_list(hint: Any) -> Any:
    """The dataclass of which a key holds a list, or nothing; `None` for any other key."""
    lists = [option for option in (hint, *typing.get_args(hint)) if typing.get_origin(option) is list]
    sections = [item for option in lists for item in typing.get_args(option) if dataclasses.is_dataclass(item)]
    return sections[0] if sections else None


def _read_value(value: Any, hint: Any, path: str) -> Any:
    """A value with its paths as text, and its numbers as numbers where the type says so."""
    if isinstance(value, dict) and "." in path:  # a value; sections are read key by key
        value = with_truth_values(value)
    if isinstance(value, list):
        value = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if typing.get_origin(hint) in _LISTS and isinstance(value, list):
        value = [_read_number(item, typing.get_args(hint)[0]) for item in value]
    return _read_number(value, hint)


def _expected(value: Any, hint: Any) -> str:
    """The type of a key and the value it got, in words."""
    if hint == bool | dict[str, Any]:
        return f"true, false or fields of DistillationConfig, got {value!r}"
    is_text = isinstance(value, bool | int | float) and _matches(str(value), hint)
    quoted = "; put it in quotes" if is_text else ""
    return f"{_name(hint)}, got {value!r} ({type(value).__name__}){quoted}"


def _read_word(value: Any, hint: Any) -> Any:
    """Words such as `no`: text where text alone is expected, else a truth value."""
    if not isinstance(value, Word):
        return value
    options = typing.get_args(hint) or (hint,)
    return str(value) if bool not in options and any(_is_text(option) for option in options) else value.truth


def _is_text(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, str))


def _read_number(value: Any, hint: Any) -> Any:
    if _accepts(hint, float) and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in _LISTS:
        return isinstance(value, list) and all(_matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, str):  # enumerations of transformers are strings
        return isinstance(value, str) and _is_member(value, hint)
    return isinstance(value, origin or hint)


def _is_member(value: str, hint: type[str]) -> bool:
    try:
        hint(value)
    except ValueError:
        return False
    return True


def _accepts(hint: Any, kind: type) -> bool:
    return hint is kind or (kind in typing.get_args(hint) and str not in typing.get_args(hint))


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if option is types.NoneType else _name(option) for option in typing.get_args(hint))
    return (
        hint.__name__
        if isinstance(hint, type) and typing.get_origin(hint) is None
        else str(hint).replace("typing.", "").replace("collections.abc.Sequence", "list")
    )


def _short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"
