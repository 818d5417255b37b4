"""Distillation: its configuration, teachers and their stored targets, and a `Trainer` for it."""
