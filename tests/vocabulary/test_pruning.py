"""Pruned tokenizers write every text that the whole ones write, and are stock tokenizers."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, TEXT, make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_whittle.demo import TEACHER
from hf_whittle.errors import SubnetError, VocabularyError
from hf_whittle.files.tokenizer import save_tokenizer
from hf_whittle.vocabulary import closed, minimum_size, prune_tokenizer
from hf_whittle.vocabulary.structure import Structure

WRITES_EVERYTHING = ("gpt2", "llama3", "smollm2", "roberta", "gemma")
"""Tokenizers that decode every text to itself; others normalize it, lack characters, or take white space away."""
SPECIAL = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<table>",
    "▁",
    "\u0000",
    "\ufeff",
    "\u200d",
]
MERGES_OF_ABC = [("a", "b"), ("ab", "c")]
PARTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(st.characters(categories=["Co", "Cn", "Cc", "Cf", "Zs", "Zl", "Zp", "Mn"]), max_size=10),
    st.sampled_from(SPECIAL),
    st.sampled_from([line[:40] for line in TEXT.splitlines()]),
    st.builds(lambda space, number: space * number, st.sampled_from(" \t\n\r\u00a0\u3000"), st.integers(1, 70)),
)
TEXTS = st.lists(PARTS, max_size=6).map("".join)


def some_ids(tokenizer, seed, share=0.4):
    """A closed set of ids: those of a random share of the tokens, and what they need."""
    size = len(tokenizer)
    return closed(tokenizer, random.Random(seed).sample(range(size), int(share * size)))


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def pairs(whole):
    """The whole tokenizer and pruned ones: the least one, and two of random tokens."""
    chosen = [closed(whole, []), some_ids(whole, 1), some_ids(whole, 2, 0.8)]
    return whole, [(kept, prune_tokenizer(whole, kept)) for kept in chosen]


def written(tokenizer, text):
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


@given(text=TEXTS)
def test_every_text_that_the_whole_tokenizer_writes_is_written(pairs, text):
    whole, pruned = pairs
    if written(whole, text) == text:
        for _, tokenizer in pruned:
            assert written(tokenizer, text) == text


@pytest.mark.parametrize("kind", WRITES_EVERYTHING)
def test_some_tokenizers_write_everything(kind):
    """So that the test above is not about few texts."""
    tokenizer = make_tokenizer(kind)
    pruned = prune_tokenizer(tokenizer, closed(tokenizer, []))

    @given(text=TEXTS)
    def write(text):
        assert written(tokenizer, text) == written(pruned, text) == text

    write()


def test_characters_of_all_planes_are_written_by_the_least_tokenizer():
    tokenizer = make_tokenizer("llama3")
    pruned = prune_tokenizer(tokenizer, closed(tokenizer, []))
    planes = [range(0xD800), range(0xE000, 0x20000), range(0x20000, 0x110000, 61)]
    points = itertools.chain.from_iterable(planes)
    while some := "".join(map(chr, itertools.islice(points, 2**10))):
        assert written(pruned, some) == some


def test_texts_of_kept_tokens_are_segmented_as_before(pairs):
    whole, pruned = pairs
    words = [text for line in TEXT.splitlines(keepends=True) for text in (line, *line.split(" "))]
    seen = 0
    for kept, tokenizer in pruned:
        for text in words:
            ids = whole.encode(text)
            if set(ids) <= set(kept):
                assert [kept[index] for index in tokenizer.encode(text)] == ids
                seen += 1
    assert seen > 10


def test_a_token_keeps_its_spelling_and_gets_its_place_as_id(pairs):
    whole, pruned = pairs
    for kept, tokenizer in pruned:
        assert type(tokenizer) is type(whole)
        assert tokenizer.convert_ids_to_tokens(range(len(kept))) == whole.convert_ids_to_tokens(kept)
        assert tokenizer.get_vocab() == {whole.convert_ids_to_tokens(index): i for i, index in enumerate(kept)}
        assert tokenizer.special_tokens_map == whole.special_tokens_map
        assert tokenizer.added_tokens_encoder.keys() == whole.added_tokens_encoder.keys()
        assert tokenizer.padding_side == whole.padding_side
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
            old, new = getattr(whole, name), getattr(tokenizer, name)
            assert new is None if old is None else kept[new] == old


def test_special_tokens_stand_around_a_text_as_before(pairs):
    whole, pruned = pairs
    for kept, tokenizer in pruned:
        before = whole.encode("", "")
        assert [kept[index] for index in tokenizer.encode("", "")] == before
        padded = tokenizer(["a", "a a a"], padding=True)["input_ids"] if tokenizer.pad_token else [[]]
        assert len(set(map(len, padded))) == 1


@pytest.mark.parametrize("kind", ["qwen2", "smollm2", "llama3"])
def test_chats_are_written_as_before(kind):
    whole = make_tokenizer(kind)
    pruned = prune_tokenizer(whole, some_ids(whole, 3))
    chat = [{"role": "user", "content": "Which model?"}, {"role": "assistant", "content": "the small one 🙂"}]
    text = whole.apply_chat_template(chat, tokenize=False)
    assert pruned.apply_chat_template(chat, tokenize=False) == text
    assert pruned.decode(pruned.apply_chat_template(chat, tokenize=True)["input_ids"]).endswith(text)


def test_saved_files_are_those_of_a_stock_tokenizer(pairs, tmp_path):
    whole, pruned = pairs
    for place, (kept, tokenizer) in enumerate(pruned):
        folder = tmp_path / str(place)
        save_tokenizer(tokenizer, folder)
        again = AutoTokenizer.from_pretrained(folder)
        assert type(again) is type(whole)
        assert json.loads(again.backend_tokenizer.to_str()) == json.loads(tokenizer.backend_tokenizer.to_str())
        assert again.encode(TEXT) == tokenizer.encode(TEXT) and max(again.encode(TEXT)) < len(kept)
        assert again.chat_template == whole.chat_template and again.padding_side == whole.padding_side
        names = {path.name for path in folder.iterdir()}
        assert names <= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
        assert str(whole.name_or_path) not in (folder / "tokenizer_config.json").read_text()


def test_names_of_bytes_in_a_text_are_no_bytes_once_their_letters_are_all_that_is_left():
    """A Unigram model finds the piece `<0x41>` in a text that says so, unless its pieces are more probable."""
    whole = make_tokenizer("unigram_of_bytes")
    settings = json.loads(whole.backend_tokenizer.to_str())
    letters = [[letter, -15.0] for letter in "<0x41>" if letter not in whole.get_vocab()]
    settings["model"]["vocab"] += [*letters, ["<0x4", -1.0], ["1>", -1.0]]
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(settings)), unk_token="<unk>")
    assert written(whole, "<0x41>") == "<0x41>" and written(whole, "<0x42>") == "B"
    pruned = prune_tokenizer(whole, closed(whole, range(len(whole) - 2)))
    assert written(pruned, "<0x41>A\n\u1234") == "<0x41>A\n\u1234"


def test_all_tokens_make_the_same_tokenizer(whole):
    pruned = prune_tokenizer(whole, len(whole))
    assert (
        json.loads(pruned.backend_tokenizer.to_str())["model"] == json.loads(whole.backend_tokenizer.to_str())["model"]
    )
    assert pruned.encode(TEXT) == whole.encode(TEXT)


def test_pruning_twice_is_pruning_once(whole):
    outer = some_ids(whole, 4, 0.7)
    pruned = prune_tokenizer(whole, outer)
    inner = some_ids(pruned, 5, 0.3)
    twice, once = prune_tokenizer(pruned, inner), prune_tokenizer(whole, [outer[index] for index in inner])
    assert json.loads(twice.backend_tokenizer.to_str()) == json.loads(once.backend_tokenizer.to_str())


def test_a_pruned_tokenizer_stays_pruned_when_it_is_saved_beside_the_whole_one(tmp_path):
    whole = make_tokenizer("gpt2")
    (tmp_path / "whole").mkdir()
    whole.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "merges.txt").write_text("#version: 0.2\n")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "whole")
    save_tokenizer(prune_tokenizer(loaded, closed(loaded, [])), tmp_path / "pruned")
    assert not (tmp_path / "pruned" / "merges.txt").exists()


# Completeness


def test_bytes_always_stay_but_characters_that_bytes_can_write_do_not():
    whole = make_tokenizer("llama2")
    least = whole.convert_ids_to_tokens(closed(whole, []))
    assert least == ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    assert minimum_size(whole) == 260 < sum(len(token) == 1 for token in whole.get_vocab()) + 259


def test_characters_stay_where_no_bytes_can_write_them():
    for kind, also in (("characters", set()), ("t5", {"<pad>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"})):
        whole = make_tokenizer(kind)
        least = set(whole.convert_ids_to_tokens(closed(whole, [])))
        assert least == {token for token in whole.get_vocab() if len(token) == 1} | {"<unk>", "</s>"} | also


def test_closed_adds_those_that_merges_make_a_token_of():
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    (index,) = tokenizer.encode(" return")
    merges = {"".join(merge): merge for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]}
    expected, waiting = set(), ["Ġreturn"]
    while waiting:
        token = waiting.pop()
        expected.add(token)
        waiting += merges.get(token, [])
    added = set(closed(tokenizer, [index])) - set(closed(tokenizer, []))
    assert set(tokenizer.convert_ids_to_tokens(sorted(added))) == {token for token in expected if len(token) > 1}


def test_of_several_merges_to_a_token_the_one_that_is_used_counts():
    """`abc` is made of `ab` and `c`, as `a b` comes first, though `a` and `bc` would do as well."""
    merges = [("b", "cd"), ("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("c", "d"), ("abc", "d"), ("ab", "cd")]
    tokens = dict.fromkeys([*"abcd", *("".join(merge) for merge in merges[1:]), "bcd"])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))
    structure = Structure.of(tokenizer)
    parts = {structure.tokens[t]: tuple(map(structure.tokens.get, pair)) for t, pair in structure.parts.items()}
    assert parts["abc"] == ("ab", "c") and parts["abcd"] == ("abc", "d")
    pruned = prune_tokenizer(tokenizer, closed(tokenizer, [vocabulary["abcd"]]))
    assert pruned.tokenize("abcd") == ["abcd"] and "bc" not in pruned.get_vocab()


def test_what_an_added_token_is_made_of_stays_with_it():
    """An added token that stands for a whole word alone is made by merges within others."""
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["a", "b", "c", "ab", "abc"])}, MERGES_OF_ABC))
    backend.add_tokens([AddedToken("abc", single_word=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.convert_ids_to_tokens(closed(tokenizer, [])) == ["a", "b", "c", "ab", "abc"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clip"])  # which marks the end of all it segments
def test_every_kept_token_that_was_ever_used_still_is(kind):
    """Alone, a token is segmented as itself by the pruned tokenizer if it is by the whole one."""
    whole = make_tokenizer(kind)
    kept = some_ids(whole, 6)
    pruned = prune_tokenizer(whole, kept)
    before, after = whole.backend_tokenizer.model, pruned.backend_tokenizer.model
    alone = [token for token in pruned.get_vocab() if [t.value for t in before.tokenize(token)] == [token]]
    assert len(alone) > 50
    for token in alone:
        assert [t.value for t in after.tokenize(token)] == [token]


@pytest.mark.parametrize(
    "kind, left_out, message",
    [
        ("gpt2", "Ġ", r"lack 1 of the 257 tokens that always stay, .* first 'Ġ' \(id \d+\); add what is missing with"),
        ("llama2", "<0x0A>", r"lack 1 of the 260 tokens that always stay, .* first '<0x0A>'"),
        ("t5", "▁", "lack 1 of the .* first '▁'"),
        ("qwen2", "<|im_end|>", r"lack 1 of the .* first '<\|im_end\|>'"),
        ("gpt2", "Ġt", r"the kept ids have '\S+' \(id \d+\), but not 'Ġt' \(id \d+\), which it is merged from; add"),
    ],
)
def test_a_set_that_is_not_complete_is_an_error(kind, left_out, message):
    whole = make_tokenizer(kind)
    kept = sorted(set(range(len(whole))) - {whole.convert_tokens_to_ids(left_out)})
    with pytest.raises(VocabularyError, match=message):
        prune_tokenizer(whole, kept)
    if left_out != "Ġt":
        assert closed(whole, kept) == list(range(len(whole)))


def test_ids_that_do_not_ascend_are_an_error():
    with pytest.raises(SubnetError, match=r"kept_ids: indices must ascend, got .*; sort them"):
        prune_tokenizer(make_tokenizer("gpt2"), range(400, 0, -1))


def test_ids_of_no_token_are_places_without_one():
    whole = make_tokenizer("gpt2")
    kept = [*closed(whole, []), len(whole) + 3, len(whole) + 9]
    assert closed(whole, kept) == kept
    assert len(prune_tokenizer(whole, kept)) == len(kept) - 2


def test_tokenizers_of_other_kinds_are_errors():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(VocabularyError, match="tokenizers of kind BPE and Unigram can be pruned, got WordLevel"):
        prune_tokenizer(words, [0])
    with pytest.raises(VocabularyError, match="only a fast tokenizer can be pruned, got a dict"):
        closed({}, [0])


def test_a_class_that_does_not_load_what_it_saves_is_an_error():
    whole = make_tokenizer("gpt2")
    changed = type(whole)(vocab=whole.get_vocab(), merges=[])
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(VocabularyError, match="GPT2Tokenizer does not load the normalizer that its files have"):
        prune_tokenizer(changed, len(changed))
