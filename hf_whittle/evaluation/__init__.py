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
    values_of_blocks,
)
from .log_probabilities import log_probabilities
from .metrics import metric_path
from .texts import Measured, measure_texts

__all__ = [
    "Measured",
    "as_input_ids",
    "cross_entropy",
    "evaluating",
    "log_probabilities",
    "measure_texts",
    "metric_path",
    "next_token_logits",
    "over_batches",
    "perplexity",
    "sum_over_batches",
    "sum_over_blocks",
    "values_of_blocks",
]
