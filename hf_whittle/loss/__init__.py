"""Distillation losses: divergences between distributions, and losses between hidden states."""
