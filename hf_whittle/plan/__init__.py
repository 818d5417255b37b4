"""Plans: parameters, tokens, FLOPs, memory, disk and hours of a recipe before anything is spent."""

from .planning import plan_recipe

__all__ = ["plan_recipe"]
