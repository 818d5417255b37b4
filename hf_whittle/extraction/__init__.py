"""Extraction of a student from a model in memory or from a checkpoint."""
