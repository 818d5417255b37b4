"""Recipes of `hf-whittle run`, read from YAML."""

from .recipe import Recipe

__all__ = ["Recipe"]
