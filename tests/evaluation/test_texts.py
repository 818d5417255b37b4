"""Perplexity, bits per byte and word perplexity of texts, against sums written out one token at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fixtures_evaluation import TEXTS

from hf_whittle.data import pack_documents
from hf_whittle.errors import DataError, VocabularyError
from hf_whittle.evaluation import as_input_ids, cross_entropy, measure_texts
from hf_whittle.evaluation.texts import count_words
from hf_whittle.evaluation.windows import rolling_windows


def loss_of(model, context, token):
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1]
    return -F.log_softmax(logits.double(), -1)[token].item()


def loss_one_by_one(model, ids, prefix, size):
    """Cross-entropy of a document by the definition: each token after those that its window reads before it."""
    total, number = 0.0, len(ids)
    source = [prefix, *ids]
    for place in range(number):
        window = place // size
        end = min((window + 1) * size, number)
        begin = max(0, end - size)
        total += loss_of(model, source[begin : place + 1], source[place + 1])
    return total


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 64])
def test_every_token_of_a_document_is_predicted_once(model, tokenizer, size):
    found = measure_texts(model, tokenizer, TEXTS, block_size=size, batch_size=3)
    encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = [loss_one_by_one(model, ids, tokenizer.bos_token_id, size) for ids in encoded]
    assert found.predicted == found.tokens == sum(map(len, encoded)) and found.documents == len(TEXTS)
    assert [nats for nats, _ in found.of_documents] == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / found.tokens), rel=1e-5)
    means = [nats / len(ids) for nats, ids in zip(expected, encoded, strict=True)]
    assert found.perplexities == pytest.approx([math.exp(mean) for mean in means], rel=1e-5)


def test_bits_and_word_perplexity_are_of_the_whole_text(model, tokenizer):
    found = measure_texts(model, tokenizer, TEXTS)
    data = "".join(TEXTS).encode()
    assert found.bytes == len(data) and found.words == sum(map(count_words, TEXTS))
    assert found.bits_per_byte * found.bytes == pytest.approx(found.nats / math.log(2))
    assert found.byte_perplexity == pytest.approx(2**found.bits_per_byte)
    assert math.log(found.word_perplexity) * found.words == pytest.approx(found.nats)


def test_packed_texts_are_blocks_of_a_recipe(model, tokenizer):
    found = measure_texts(model, tokenizer, TEXTS, protocol="packed", block_size=32)
    blocks = pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, 32)
    ids = as_input_ids(blocks, model.config.vocab_size)
    assert found.perplexity == pytest.approx(math.exp(cross_entropy(model, ids)), rel=1e-6)
    assert found.predicted == ids.shape[0] * 31
    assert found.tokens == sum(len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS)
    per_token = found.nats / found.predicted
    assert found.bits_per_byte == pytest.approx(per_token * found.tokens / found.bytes / math.log(2))


def test_one_text_is_cut_into_windows_side_by_side(model, tokenizer):
    found = measure_texts(model, tokenizer, TEXTS, protocol="text", block_size=32)
    ids = torch.tensor(tokenizer("\n\n".join(TEXTS))["input_ids"])
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    assert found.perplexity == pytest.approx(math.exp(cross_entropy(model, windows)), rel=1e-6)
    assert found.tokens == len(ids)


@pytest.mark.parametrize("protocol", ["documents", "text", "packed"])
def test_batches_change_nothing(model, tokenizer, protocol):
    one, many, default = (
        measure_texts(model, tokenizer, TEXTS, protocol=protocol, block_size=20, batch_size=size)
        for size in (1, 7, None)
    )
    assert one.nats == pytest.approx(many.nats, rel=1e-6) == default.nats
    assert one.predicted == many.predicted == default.predicted


def test_the_last_window_reads_as_much_as_there_is_room_for():
    windows = list(rolling_windows(range(1, 11), 4, prefix=0))
    assert [window.inputs.tolist() for window in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]
    assert [window.targets.tolist() for window in windows] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert not list(rolling_windows([], 4, prefix=0)) and not list(rolling_windows([3], 4, prefix=None))


def test_a_text_that_begins_with_the_prefix_gets_no_second_one(model, tokenizer):
    class WithPrefix:
        """The tokenizer, which puts its beginning-of-text token before a text."""

        def __init__(self):
            self.bos_token_id = self.eos_token_id = tokenizer.bos_token_id
            self.decode = tokenizer.decode

        def __call__(self, text, add_special_tokens=True, **options):
            if not isinstance(text, str):
                return {"input_ids": [self(each, add_special_tokens)["input_ids"] for each in text]}
            ids = tokenizer(text, **options)["input_ids"]
            return {"input_ids": [tokenizer.bos_token_id, *ids] if add_special_tokens else ids}

    texts = [TEXTS[0], tokenizer.bos_token + TEXTS[0]]
    first, second = measure_texts(model, WithPrefix(), texts).of_documents
    assert first == second and first[1] == len(tokenizer(TEXTS[0])["input_ids"]) + 1


def test_words_are_parts_between_white_space():
    assert [count_words(text) for text in ("two words", "two\n \twords", "x", " x ")] == [2, 2, 1, 3]


def test_what_cannot_be_measured_is_said(model, tokenizer, make_stock):
    with pytest.raises(DataError, match=r"the texts are one string, .*; give a list of texts"):
        measure_texts(model, tokenizer, TEXTS[0])
    with pytest.raises(DataError, match="no text to evaluate on: every document is empty"):
        measure_texts(model, tokenizer, ["", ""])
    with pytest.raises(DataError, match="block size must be 2 to 64, the positions of the model, got 65"):
        measure_texts(model, tokenizer, TEXTS, block_size=65)
    with pytest.raises(DataError, match="has 1 tokens, less than one window of 64; give more text"):
        measure_texts(model, tokenizer, ["x"], protocol="text")
    with pytest.raises(DataError, match="protocol must be one of documents, text, packed, got 'rolling'"):
        measure_texts(model, tokenizer, TEXTS, protocol="rolling")
    with pytest.raises(VocabularyError, match="the model's vocabulary has 99 entries"):
        measure_texts(make_stock(), tokenizer, TEXTS)
