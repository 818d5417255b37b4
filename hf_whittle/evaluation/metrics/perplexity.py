"""Perplexity of a token."""

from hf_whittle.evaluation import blocks, metric


class Perplexity(metric.LanguageModelMetric):
    """Perplexity of a token: the exponential of its mean cross-entropy.

    Of texts, `perplexities` has that of each and `mean_perplexity` their mean, as the metric `perplexity` of the Hub;
    a text longer than the model's positions is read in windows, where that metric truncates it. `perplexity` is that of
    all tokens.
    """

    options = {"add_special_tokens": False}

    def of_measured(self, measured):
        values = measured.perplexities
        return {
            "perplexities": values,
            "mean_perplexity": sum(values) / len(values),
            "perplexity": measured.perplexity,
        }

    def of_tokens(self, nats, labels):
        return {"perplexity": blocks.perplexity(nats / sum(map(len, labels)))}
