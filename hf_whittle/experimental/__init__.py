"""Methods that did not pay off in this project's own measurements; names and behavior may change."""

from typing import Any

from .registry import FITNESSES

ALGORITHMS: dict[str, Any] = {}
"""The settings of every experimental search algorithm by its name, in the form of `search.algorithms`."""

__all__ = ["ALGORITHMS", "FITNESSES"]
