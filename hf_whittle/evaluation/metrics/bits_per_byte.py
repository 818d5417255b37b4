"""Bits per byte of a text."""

from hf_whittle.evaluation import metric


class BitsPerByte(metric.LanguageModelMetric):
    """Bits for each byte of a text, which do not depend on the tokenizer, as lm-evaluation-harness defines them."""

    def of_measured(self, measured):
        return {"bits_per_byte": measured.bits_per_byte}

    def of_tokens(self, nats, labels, num_bytes=None, tokenizer=None):
        return {"bits_per_byte": metric.bits(metric.of_text(nats, labels, "bytes", num_bytes, tokenizer))}
