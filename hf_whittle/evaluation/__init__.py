"""Evaluation of models: cross-entropy on blocks, perplexity on texts, tasks of lm-evaluation-harness, metrics."""

from .blocks import (
    as_input_ids,
    cross_entropy,
    evaluating,
    next_token_logits,
    over_batches,
    perplexity,
    sum_over_batches,
    sum_over_blocks,
)

__all__ = [
    "as_input_ids",
    "cross_entropy",
    "evaluating",
    "next_token_logits",
    "over_batches",
    "perplexity",
    "sum_over_batches",
    "sum_over_blocks",
]
