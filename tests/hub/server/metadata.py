"""Checks of the metadata of a card, as the Hub makes them."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import yaml

LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "odc-by", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "llama2", "llama3", "llama3.1", "gemma", "unknown", "other",
}  # fmt: skip


def read_card(card: str) -> Any:
    """The metadata at the top of a card; empty if there are none."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?\n)?---[ \t]*(\r?\n|\Z)", card, re.DOTALL)
    return yaml.safe_load(block[1] or "") if block else None


def _strings(value: object, pattern: str = r"\S.*") -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) and re.fullmatch(pattern, one) for one in values)


def _is_index(value: Any) -> bool:
    """Whether every result of a model index has a task, a dataset and metrics with values."""
    try:
        for result in itertools.chain.from_iterable(model["results"] for model in value if model["name"]):
            names = result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
            metrics = [(metric["type"], metric["value"]) for metric in result["metrics"]]
            if not all(names) or not metrics or any(None in metric for metric in metrics):
                return False
    except (KeyError, TypeError):
        return False
    return True


_REPO_NAME = r"[\w.-]+(/[\w.-]+)?"
METADATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (
        lambda value: _strings(value, "|".join(map(re.escape, LICENSES))),
        "must be a license of the Hub's list",
    ),
    "tags": (lambda value: isinstance(value, list) and _strings(value), "must be an array of strings"),
    "base_model": (lambda value: _strings(value, _REPO_NAME), "must be names of models on the Hub"),
    "datasets": (lambda value: _strings(value, _REPO_NAME), "must be names of datasets on the Hub"),
    "language": (lambda value: _strings(value, r"[a-z]{2,3}(-\w+)?|multilingual|code"), "must be ISO 639 codes"),
    "library_name": (lambda value: isinstance(value, str), "must be a string"),
    "pipeline_tag": (lambda value: isinstance(value, str), "must be a string"),
    "model-index": (_is_index, "must name task, dataset and metrics of every result"),
}


def metadata_errors(card: str) -> list[str]:
    """Faults of a card's metadata for which the Hub refuses it."""
    try:
        metadata = read_card(card)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(metadata or {}, dict):
        return ["the metadata must be an object"]
    checked = {key: rule for key, rule in METADATA.items() if (metadata or {}).get(key) is not None}
    return [f'"{key}" {message}' for key, (valid, message) in checked.items() if not valid(metadata[key])]
