"""The main job: search, extract, pretrain, compare with random initialization, report."""

from .main import run, search

__all__ = ["run", "search"]
