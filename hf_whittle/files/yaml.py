"""Read and write YAML with the numbers and words of YAML 1.2, and every key at most once."""

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import RecipeError
from .paths import expanded

_NUMBER = re.compile(
    r"""[-+]?0o[0-7_]+ | [-+]?0x[0-9a-fA-F_]+ | [-+]?0b[01_]+
    | [-+]?(\d[\d_]*(\.[\d_]*)? | \.\d[\d_]*)([eE][-+]?\d+)?""",
    re.X,
)
_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}
_MOST_ZEROS = 30  # largest exponent of a number that is read as whole


class Word(str):
    """A word such as `no`: a truth value where one is expected, text where text is."""

    @property
    def truth(self) -> bool:
        return _WORDS[self.lower()]


def with_truth_values(value: Any) -> Any:
    """Replace every `Word` in a value by its truth value."""
    if isinstance(value, Word):
        return value.truth
    if isinstance(value, dict):
        return {name: with_truth_values(each) for name, each in value.items()}
    return [with_truth_values(each) for each in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, `010` as ten, `0o10` as eight, `12:30` and dates as text, `yes` as a `Word`."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("int", "float", "bool", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice, in line {lines[key.value]} and line {line}"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "").lower()
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    if digits.isdecimal():
        return sign * int(digits)
    number = float(text)
    is_whole = "e" in text and abs(number) < 10**_MOST_ZEROS and number.is_integer()
    return int(number) if is_whole else number  # 1e6 is read as 1000000


def _construct_special(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace(".", ""))


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool | Word:
    return node.value.lower() == "true" if node.value.lower() in ("true", "false") else Word(node.value)


_KINDS: dict[str, tuple[re.Pattern[str], str, Any]] = {
    "!number": (re.compile(rf"^(?:{_NUMBER.pattern})$", re.X), "-+.0123456789", _construct_number),
    "!special": (re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), "-+.", _construct_special),
    "!truth": (re.compile(rf"^(?:true|false|{'|'.join(_WORDS)})$", re.I), "tTfFyYnNoO", _construct_bool),
}
for tag, (pattern, beginnings, construct) in _KINDS.items():
    _Loader.add_implicit_resolver(tag, pattern, list(beginnings))
    _Loader.add_constructor(tag, construct)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or a reader of YAML 1.1 would take for another type."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        mistaken = any(pattern.match(data) for pattern, _, _ in _KINDS.values())
        return self.represent_scalar("tag:yaml.org,2002:str", str(data), style="'" if mistaken else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the keys and values of a file.

    Raises:
        RecipeError: if it cannot be read, is not YAML, gives a key twice, or is not a mapping.
    """
    try:
        values = yaml.load(Path(expanded(path)).read_bytes(), _Loader)  # a SafeLoader
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(f"{path}: {error.problem}; correct the file") from error
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        hint = "; indent by spaces, not by tabs" if r"'\t'" in str(error) else ""
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, got {type(values).__name__}")
    return values


def read_value(text: str) -> Any:
    """Read a value as one of a recipe is read; what is not YAML is text.

    Raises:
        RecipeError: if it is a mapping that gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(f"{text}: {error.problem}; correct it") from error
    except yaml.YAMLError:
        return text


def as_yaml(values: dict[str, Any]) -> str:
    """Return YAML that `read_yaml` reads as the same keys and values."""
    return yaml.dump(with_truth_values(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
