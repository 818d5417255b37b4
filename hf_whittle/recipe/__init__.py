"""Recipes: what `hf-whittle run` does, read from YAML."""

from .recipe import Recipe

__all__ = ["Recipe"]
