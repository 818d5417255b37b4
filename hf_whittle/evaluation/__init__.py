"""Evaluation of models: cross-entropy on blocks, perplexity on texts, tasks of lm-evaluation-harness, metrics."""

from ..models.evaluating import evaluating as evaluating
from .blocks import as_input_ids as as_input_ids
from .blocks import cross_entropy, perplexity
from .blocks import read_logits as read_logits
from .blocks import sums_of_blocks as sums_of_blocks
from .log_probabilities import log_probabilities
from .metrics import metric_path
from .texts import Measured, measure_texts

__all__ = ["Measured", "cross_entropy", "log_probabilities", "measure_texts", "metric_path", "perplexity"]
