"""Evaluation of models: cross-entropy on blocks, perplexity on texts, tasks of lm-evaluation-harness, metrics."""

from .blocks import as_input_ids as as_input_ids
from .blocks import cross_entropy, perplexity
from .blocks import evaluating as evaluating
from .blocks import next_token_logits as next_token_logits
from .blocks import sum_over_batches as sum_over_batches
from .blocks import sum_over_blocks as sum_over_blocks
from .log_probabilities import log_probabilities
from .metrics import metric_path
from .texts import Measured, measure_texts

__all__ = ["Measured", "cross_entropy", "log_probabilities", "measure_texts", "metric_path", "perplexity"]
