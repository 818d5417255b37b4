"""The tokenizer of a real model with a part of its tokens."""

import pytest
from transformers import AutoTokenizer

from hf_whittle.data.documents import load_documents
from hf_whittle.vocabulary import VocabularyMap, prune_tokenizer, rank_tokens


def tokens_of(tokenizer, texts):
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def test_a_quarter_of_the_tokens(tokenizer, report, tmp_path):
    documents = load_documents("python-standard-library")["text"]
    ranked, held_out = documents[:60:2], documents[1:20:2]
    size = len(tokenizer) // 4
    by_use, by_merges = (
        prune_tokenizer(tokenizer, sorted(order[:size]))
        for order in (rank_tokens(tokenizer, ranked), rank_tokens(tokenizer))
    )
    by_use.save_pretrained(tmp_path)
    by_use = AutoTokenizer.from_pretrained(tmp_path)
    assert len(by_use) == size
    for text in held_out:
        assert by_use.decode(by_use.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    chat = [{"role": "user", "content": "Name a number."}]
    assert by_use.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    found = VocabularyMap.between(by_use, tokenizer)
    assert len(found) + len(found.dropped) == pytest.approx(len(tokenizer), abs=100)
    size_of_text = sum(len(text.encode()) for text in held_out)
    figures = {"whole": tokenizer, "by use": by_use, "by merges": by_merges}
    figures = {name: round(tokens_of(each, held_out) / size_of_text, 4) for name, each in figures.items()}
    report(tokens_per_byte=figures)
    assert figures["by use"] < figures["by merges"]
