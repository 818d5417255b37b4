"""The main job: search, extract, pretrain, compare with random initialization, report."""

from .run import run

__all__ = ["run"]
