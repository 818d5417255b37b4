"""Fitnesses as predictors: how they rank subnets, against the perplexity after distillation and their cost.

Two studies by the same code: `real`, of near-good subnets of SmolLM2-135M, and `toy`, of subnets that nothing has
filtered, of the demo's teacher and a deeper one. Subnets are chosen, evaluated by every fitness, and trained by
distillation for two budgets, from the slice or from a healed start. Every raw value is a line of
`results/ranking_real_rows.jsonl` or `results/ranking_toy_rows.jsonl`; each command goes on from there:

    python -m tests.benchmarks.ranking real choose train evaluate rank

The real study needs `HF_WHITTLE_REAL_MODEL`, the folder of the checkpoint, and `HF_WHITTLE_REAL_TEXT`, patterns of text
files with `:` between them. `choose_healed` adds as many subnets again, by healed perplexity; `--starts healed` trains
from healed starts. Names of rows carry `HEALING` of `fitnesses.py`, so that two implementations can be compared.
"""
