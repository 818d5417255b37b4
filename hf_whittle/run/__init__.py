"""The main job: search, extract, pretrain, compare with random initialization, report."""

from .main import run

__all__ = ["run"]
