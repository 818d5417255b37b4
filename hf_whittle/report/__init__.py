"""A report on runs: one HTML page that needs no network."""

from .page import write_report

__all__ = ["write_report"]
