"""Students with pruned tokenizers are evaluated in bits per byte of the same text."""

import math

import pytest
import torch
from fixtures_distillation import make_model
from small_tokenizers import TEXT, make_tokenizer

from hf_whittle.evaluation.texts import measure_texts
from hf_whittle.vocabulary import closed, prune_tokenizer

TEXTS = [line for line in TEXT.splitlines() if line]


@pytest.mark.parametrize("protocol", ["documents", "text", "packed"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_bits_of_a_uniform_model_are_those_of_its_tokens(protocol, share):
    whole = make_tokenizer("smollm2")
    tokenizer = prune_tokenizer(whole, closed(whole, range(int(share * len(whole)))))
    model = make_model(1, vocab_size=len(tokenizer)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = measure_texts(model, tokenizer, TEXTS, protocol=protocol, block_size=12)
    texts = ["\n\n".join(TEXTS)] if protocol == "text" else TEXTS
    ends = len(TEXTS) if protocol == "packed" else 0  # a token after each
    tokens = sum(len(tokenizer.encode(text)) for text in texts) + ends
    size = sum(len(text.encode()) for text in TEXTS)
    assert (found.tokens, found.bytes) == (tokens, size)
    assert found.bits_per_byte == pytest.approx(tokens * math.log2(len(tokenizer)) / size, rel=1e-5)
