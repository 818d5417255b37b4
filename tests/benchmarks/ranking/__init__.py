"""Fitnesses as predictors: how they rank subnets, against the perplexity after distillation and their cost.

Two studies: near-good subnets of a real model, and subnets that nothing has filtered of toy teachers. Subnets are
chosen, trained by distillation from the slice or from a healed start for two budgets, and evaluated by every fitness.
All raw values are in `results/ranking_*_rows.jsonl`; each command reads them and adds to them:

    python -m tests.benchmarks.ranking real choose train evaluate rank
"""
