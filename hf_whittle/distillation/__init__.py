"""Distillation: its loss, its configuration and a `Trainer` for it."""
