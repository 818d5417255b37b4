"""Log-probabilities of labels, all that perplexity needs of logits."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .windows import IGNORED


def log_probabilities(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label after those before it, for `Trainer(preprocess_logits_for_metrics=...)`.

    A `Trainer` then keeps one number for each token instead of a vocabulary of them.

    Args:
        logits (`torch.Tensor` or `tuple`): logits `(rows, length, vocabulary)`, or outputs that begin with them.
        labels (`torch.Tensor`): labels `(rows, length)`, those that are left out -100.

    Returns:
        `torch.Tensor`: `(rows, length)`, 0 for each first label and those that are left out.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    found = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    for row, own, label in zip(found, logits, labels, strict=True):  # one at a time: no copy of all logits
        losses = torch.nn.functional.cross_entropy(
            own[:-1].float(), label[1:].to(own.device), ignore_index=IGNORED, reduction="none"
        )
        row[1:] = -losses
    return found


def predicted(log_probabilities: Iterable[Any], labels: Iterable[Any]) -> tuple[float, list[np.ndarray]]:
    """Cross-entropy of all labels that were predicted, and these by row.

    Args:
        log_probabilities (`Iterable`): rows as the function above gives them.
        labels (`Iterable`): rows of labels.
    """
    nats, kept = 0.0, []
    for values, row in zip(log_probabilities, labels, strict=True):
        known = np.asarray(row)[1:]
        is_predicted = known != IGNORED
        nats -= float(np.asarray(values, dtype=np.float64)[1:][is_predicted].sum())
        kept.append(known[is_predicted])
    return nats, kept
