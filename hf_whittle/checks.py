"""Check that attributes of settings are numbers in their ranges; NaN is in no range."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def check_integers(settings: Any, least: Mapping[str, int], error: type[Exception] = ValueError) -> None:
    """Raise an error for an attribute that is not a whole number, or below its least value."""
    for name, low in least.items():
        value = getattr(settings, name)
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or value < low:
            kind = "" if is_whole else "a whole number of "
            raise error(f"{name} must be {kind}at least {low}, got {value!r}")


def check_numbers(settings: Any, /, *names: str, error: type[Exception] = ValueError) -> None:
    """Raise an error for an attribute that is not a finite number of at least 0."""
    for name in names:
        if not 0 <= _number(settings, name) < math.inf:
            raise error(f"{name} must be a number of at least 0, got {getattr(settings, name)!r}")


def check_positive(settings: Any, /, *names: str, error: type[Exception] = ValueError) -> None:
    """Raise an error for an attribute that is not a finite number above 0."""
    for name in names:
        if not 0 < _number(settings, name) < math.inf:
            raise error(f"{name} must be a positive number, got {getattr(settings, name)!r}")


def check_shares(settings: Any, /, *names: str, error: type[Exception] = ValueError) -> None:
    """Raise an error for an attribute that is not a number from 0 to 1."""
    for name in names:
        if not 0 <= _number(settings, name) <= 1:
            raise error(f"{name} must lie between 0 and 1, got {getattr(settings, name)!r}")


def _number(settings: Any, name: str) -> float:
    """Return an attribute, or NaN if it is not a number."""
    value = getattr(settings, name)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
