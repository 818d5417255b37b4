"""Benchmarks: `python -m tests.benchmarks [NAME ...]` runs them and writes `results/NAME.json`."""
