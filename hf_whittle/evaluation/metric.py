"""Base of the metrics for `evaluate`, of texts by a model or of the log-probabilities that a `Trainer` gives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Features, List, Value

from ..errors import DataError
from .log_probabilities import predicted
from .subject import loaded_subject
from .texts import Measured, count_bytes, count_words, measure_texts

try:
    import evaluate
except ImportError as error:
    raise ImportError("a metric needs evaluate: pip install 'hf_whittle[eval]'") from error

TEXTS = Features({"predictions": Value("string"), "references": Value("string")})
TOKENS = Features({"predictions": List(Value("float64")), "references": List(Value("int64"))})
INPUTS = """
Args of `compute`, for a model on texts:
    predictions (`list[str]`): the texts.
    model_id (`str`): name on the Hub or folder of a causal language model.
    model, tokenizer (*optional*): a loaded model and its tokenizer, instead of a name.
    batch_size (`int`, *optional*): windows in a batch.
    max_length (`int`, *optional*): most tokens of a window.
    device (`str`, *optional*): where a model that is loaded runs; the CPU by default.
Args of `compute`, in `Trainer(compute_metrics=..., preprocess_logits_for_metrics=log_probabilities)`:
    predictions (`numpy.ndarray`): log-probabilities of the labels, `(rows, length)`, as `log_probabilities` gives them.
    references (`numpy.ndarray`): the labels.
"""


class LanguageModelMetric(evaluate.Metric):
    """A figure of a language model on texts, or on tokens whose log-probabilities are known."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", inputs_description=INPUTS, features=[TEXTS, TOKENS]
        )

    of_measured: Callable[..., dict[str, Any]]
    """The metric of a measurement on texts."""
    of_tokens: Callable[..., dict[str, Any]]
    """The metric of the cross-entropy of some tokens, and of these by row; further arguments are those of `compute`."""
    options: dict[str, Any] = {}
    """Other arguments of `measure_texts`."""

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add texts, or log-probabilities and labels; texts have no references."""
        _check(predictions, references)
        super().add_batch(
            predictions=predictions, references=predictions if references is None else references, **kwargs
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add a text, or a row of log-probabilities and labels."""
        super().add(prediction=prediction, reference=prediction if reference is None else reference, **kwargs)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        if predictions and isinstance(predictions[0], str):
            return self.of_measured(self._measure(list(predictions), **options))
        nats, labels = predicted(predictions, references)
        return self.of_tokens(nats, labels, **options)

    def _measure(
        self,
        texts: list[str],
        *,
        model_id: str | None = None,
        model: Any = None,
        tokenizer: Any = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
    ) -> Measured:
        if (model_id is None) == (model is None) or (model is None) != (tokenizer is None):
            raise DataError("give either model_id, or a model and its tokenizer")
        if "" in texts:
            raise DataError(f"text {texts.index('')} is empty, and has no perplexity; leave it out")
        how: dict[str, Any] = {"batch_size": batch_size, "block_size": max_length, **self.options}
        if model_id is None:
            return measure_texts(model, tokenizer, texts, **how)
        with loaded_subject(model_id, device=device) as subject:
            return measure_texts(subject.model, subject.tokenizer, texts, **how)


def _check(predictions: Any, references: Any) -> None:
    shape = np.shape(predictions) if isinstance(predictions, np.ndarray) else ()
    if len(shape) > 2:
        raise DataError(
            f"predictions of shape {tuple(shape)} are logits; give log-probabilities of the labels, as "
            "Trainer(preprocess_logits_for_metrics=hf_whittle.evaluation.log_probabilities) makes them"
        )
    is_text = predictions is not None and len(predictions) and isinstance(predictions[0], str)
    if not is_text and references is None:
        raise DataError("predictions are no texts, and there are no references; give the labels as references")


def of_text(nats: float, labels: list[np.ndarray], unit: str, number: int | None, tokenizer: Any) -> float:
    """Cross-entropy of predicted tokens for each byte or word of their text.

    Args:
        nats (`float`): cross-entropy of all.
        labels (`list[numpy.ndarray]`): the tokens by row.
        unit (`str`): `"bytes"` or `"words"`.
        number (`int`, *optional*): number of these in the text.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): to count them in the decoded tokens instead, without special
            ones.

    Raises:
        DataError: if neither is given, or both.
    """
    if (number is None) == (tokenizer is None):
        raise DataError(f"give either num_{unit} of the text that was predicted, or the tokenizer to count them with")
    if number is None:
        count = count_bytes if unit == "bytes" else count_words
        number = sum(count(text) for text in tokenizer.batch_decode(labels, skip_special_tokens=True))
    return nats / number


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
