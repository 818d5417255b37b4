"""Perplexity of a word."""

from hf_whittle.evaluation import blocks, metric


class WordPerplexity(metric.LanguageModelMetric):
    """Perplexity of a word, which does not depend on the tokenizer, as lm-evaluation-harness defines it."""

    def of_measured(self, measured):
        return {"word_perplexity": measured.word_perplexity}

    def of_tokens(self, nats, labels, num_words=None, tokenizer=None):
        return {"word_perplexity": blocks.perplexity(metric.of_text(nats, labels, "words", num_words, tokenizer))}
