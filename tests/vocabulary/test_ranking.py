"""Orders of tokens: every prefix is complete, and those by use write texts with few tokens."""

from itertools import pairwise

import pytest
from small_tokenizers import KINDS, TEXT, make_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_whittle.errors import DataError
from hf_whittle.vocabulary import closed, minimum_size, prune_tokenizer, rank_tokens
from hf_whittle.vocabulary.pruning import check_closed
from hf_whittle.vocabulary.structure import Structure

LINES = TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("by", ["merges", "texts"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_is_complete(kind, by):
    tokenizer = make_tokenizer(kind)
    order = rank_tokens(tokenizer, None if by == "merges" else LINES)
    assert sorted(order) == sorted(tokenizer.get_vocab().values())
    least = minimum_size(tokenizer)
    assert sorted(order[:least]) == closed(tokenizer, [])
    structure = Structure.of(tokenizer)
    for size in range(least, len(order) + 1):
        check_closed(structure, order[:size])


def test_merges_come_in_their_order():
    tokenizer = make_tokenizer("gpt2")
    ids = rank_tokens(tokenizer)[minimum_size(tokenizer) :]
    assert ids == sorted(ids)  # as the trainer numbers them


def test_pieces_of_a_unigram_model_come_by_probability():
    tokenizer = make_tokenizer("unigram_of_bytes")
    order = Structure.of(tokenizer).order
    assert all(order[a] <= order[b] for a, b in pairwise(rank_tokens(tokenizer)[minimum_size(tokenizer) :]))


def tokens_of(tokenizer, kept):
    pruned = prune_tokenizer(tokenizer, sorted(kept))
    return sum(len(pruned.encode(line, add_special_tokens=False)) for line in LINES)


@pytest.mark.parametrize("kind", ["llama3", "gemma", "unigram_of_bytes"])
def test_by_use_texts_are_shorter_than_by_merges(kind):
    tokenizer = make_tokenizer(kind)
    by_merges, by_use = rank_tokens(tokenizer), rank_tokens(tokenizer, LINES)
    least = minimum_size(tokenizer)
    for share in (0.1, 0.3):
        size = least + int(share * (len(tokenizer) - least))
        assert tokens_of(tokenizer, by_use[:size]) < tokens_of(tokenizer, by_merges[:size])


def test_the_token_of_least_use_goes_first_and_counts_for_its_parts_then():
    """`ab` is used 3 times, `abc` 4 times, `de` 5 times and `ad` never: `abc` goes before `ab`, which then has 7."""
    merges = [("a", "d"), ("a", "b"), ("ab", "c"), ("d", "e")]
    vocabulary = {token: index for index, token in enumerate([*"abcde", *("".join(merge) for merge in merges)])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))
    order = rank_tokens(tokenizer, ["ab"] * 3 + ["abc"] * 4 + ["de"] * 5)
    assert tokenizer.convert_ids_to_tokens(order) == [*"abcde", "ab", "de", "abc", "ad"]


def test_no_texts_are_an_error():
    for texts in (iter([]), {}, {5: 0}):
        with pytest.raises(DataError, match="there is no text to rank tokens by; give texts, or leave them out"):
            rank_tokens(make_tokenizer("gpt2"), texts)


def test_one_string_is_an_error():
    with pytest.raises(DataError, match=r"texts is one string, .*; give a list of texts"):
        rank_tokens(make_tokenizer("gpt2"), TEXT)
