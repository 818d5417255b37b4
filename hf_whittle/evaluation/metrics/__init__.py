"""Scripts for `evaluate.load(metric_path(name))`, a metric each."""

from pathlib import Path

from ...errors import DataError

NAMES = ("bits_per_byte", "perplexity", "word_perplexity")


def metric_path(name: str) -> str:
    """Path of a metric for `evaluate.load`, which loads it without the Hub.

    Args:
        name (`str`): `"perplexity"`, `"bits_per_byte"` or `"word_perplexity"`.

    Raises:
        DataError: if there is no such metric.
    """
    if name not in NAMES:
        raise DataError(f"there is no metric {name!r}; the metrics are {', '.join(NAMES)}")
    return str(Path(__file__).with_name(f"{name}.py"))
