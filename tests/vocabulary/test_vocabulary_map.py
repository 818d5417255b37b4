"""Maps between vocabularies, and bytes of tokens."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, TEXT, make_tokenizer
from transformers import PreTrainedTokenizerFast

from hf_whittle.errors import VocabularyError
from hf_whittle.vocabulary import VocabularyMap, closed, prune_tokenizer
from hf_whittle.vocabulary.token_bytes import token_bytes


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "clip"])
def pair(request):
    """A whole tokenizer, a pruned one, and the ids that it keeps."""
    whole = make_tokenizer(request.param)
    kept = closed(whole, range(0, len(whole), 3))
    return whole, prune_tokenizer(whole, kept), kept


def test_ids_are_those_of_the_same_tokens(pair):
    whole, pruned, kept = pair
    found = VocabularyMap.between(pruned, whole)
    assert found.to_teacher.tolist() == kept == VocabularyMap.of_kept(kept).to_teacher.tolist()
    assert not found.is_identity and VocabularyMap.between(whole, whole).is_identity
    assert not set(kept) & set(found.dropped.tolist())
    assert len(found) + len(found.dropped) == len(whole)


def test_the_first_piece_is_how_the_student_begins_to_write_a_token(pair):
    """Pieces spell the beginning of the token, in letters or in bytes."""
    whole, pruned, _ = pair
    found = VocabularyMap.between(pruned, whole)
    for dropped, piece in zip(found.dropped.tolist(), found.first_pieces.tolist(), strict=True):
        token, first = whole.convert_ids_to_tokens(dropped), pruned.convert_ids_to_tokens(piece)
        if first.startswith("<0x"):
            assert token.encode()[0] == int(first[3:5], 16)
        else:
            assert token.startswith(first) and token != first


def test_without_first_pieces_nothing_is_pushed():
    """A model with marks of words segments no token as it stands in a text."""
    whole = make_tokenizer("clip")
    kept = closed(whole, [])
    found = VocabularyMap.between(prune_tokenizer(whole, kept), whole)
    assert found.to_teacher.tolist() == kept and found.dropped.tolist() == [] and found.dropped.dtype == torch.long


def test_fingerprints_differ_with_maps():
    maps = [VocabularyMap.of_kept(kept) for kept in (3, 4, [0, 2, 3])]
    assert len({each.fingerprint for each in maps}) == 3
    assert maps[2].fingerprint == VocabularyMap.of_kept((0, 2, 3)).fingerprint and maps[2].largest == 3


def test_a_token_that_is_mapped_twice_is_an_error():
    one = torch.tensor([1])
    with pytest.raises(VocabularyError, match="names each token of the teacher once"):
        VocabularyMap(torch.tensor([0, 1]), one, one)


def exchanged(tokenizer):
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(settings)))


def test_another_order_of_the_same_tokens_is_an_error():
    whole = make_tokenizer("smollm2")
    message = "tokenizers differ in 2 tokens, first 'a': .* or one that prune_tokenizer made of the teacher's"
    with pytest.raises(VocabularyError, match=message):
        VocabularyMap.between(exchanged(whole), whole)
    pruned = prune_tokenizer(whole, closed(whole, range(300)))
    with pytest.raises(VocabularyError, match="tokenizers differ in"):
        VocabularyMap.between(exchanged(pruned), whole)


@pytest.mark.parametrize("other", ["llama3", "gemma"])
def test_another_tokenizer_is_an_error(other):
    with pytest.raises(VocabularyError, match=r"tokenizers differ in \d+ tokens"):
        VocabularyMap.between(make_tokenizer(other), make_tokenizer("qwen2"))


def test_ids_of_no_token_amid_others_are_an_error():
    whole = make_tokenizer("smollm2")
    settings = json.loads(prune_tokenizer(whole, closed(whole, [])).backend_tokenizer.to_str())
    vocabulary = settings["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] += 1
    student = PreTrainedTokenizerFast(tokenizer_object=type(whole.backend_tokenizer).from_str(json.dumps(settings)))
    with pytest.raises(VocabularyError, match="has no token with id 258, but tokens with higher ids; prune the"):
        VocabularyMap.between(student, whole)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "gemma", "unigram_of_bytes"])
def test_tokens_of_a_text_have_its_bytes(kind):
    """Where a tokenizer writes every text, and adds no space to it."""
    whole = make_tokenizer(kind)
    pruned = prune_tokenizer(whole, closed(whole, []))

    @given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def check(text):
        for tokenizer in (whole, pruned):
            ids = tokenizer.encode(text + TEXT, add_special_tokens=False)
            assert token_bytes(tokenizer)[ids].sum() == len((text + TEXT).encode())

    check()


def test_special_tokens_have_no_bytes():
    tokenizer = make_tokenizer("gemma")
    sizes = token_bytes(tokenizer)
    assert sizes[tokenizer.all_special_ids].sum() == 0
    assert sizes[tokenizer.convert_tokens_to_ids("<table>")] == 7


def test_tokens_with_marks_of_words_have_no_bytes_of_their_own():
    with pytest.raises(VocabularyError, match="the tokens of this tokenizer have marks of words"):
        token_bytes(make_tokenizer("clip"))
