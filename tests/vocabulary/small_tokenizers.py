"""Small tokenizers of every kind, trained on a page of text."""

import functools
import json
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

TEXT = """In the beginning there was a large model, and it was good at many things, but it was slow to run.
So they cut it down, layer by layer and head by head, until the small one was quick, and nearly as good as the large.
def whittle(model, subnet):
    for layer in subnet.layers:
        yield model.layers[layer]  # the layers that the subnet keeps, 1 2 3 42 128 1024
Größe, naïve café, où est-il? Это предложение на русском языке. 日本語の文章です。中文句子。 🙂🙂👍🏽
The quick brown fox jumps over the lazy dog;\tthe five boxing wizards jump quickly.\n\n\n        Tabs\tand spaces.
"""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@functools.cache
def byte_level(special=(), size=500, whole=False):
    """Vocabulary and merges of byte-level BPE, with special tokens first; `whole` takes words for whole lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=not whole)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return _model(tokenizer)


def _model(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@functools.cache
def with_byte_fallback(special):
    """Vocabulary of special tokens, bytes, then pieces and characters as SentencePiece orders them; all of its merges.

    As in files converted from SentencePiece, there is a merge for each two tokens whose join is a token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = Split(Regex("▁*[^▁]*"), "isolated")
    tokenizer.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=350, show_progress=False))
    vocabulary, merges = _model(tokenizer)
    pieces = [left + right for left, right in merges]
    characters = [token for token in vocabulary if len(token) == 1]
    own = {token: index for index, token in enumerate([*special, *BYTES, *pieces, *characters])}
    rank = {piece: place for place, piece in enumerate(pieces)}
    joins = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
    joins = [(left, right) for left, right in joins if left in own and right in own]
    return own, sorted(joins, key=lambda pair: (rank["".join(pair)], own[pair[0]]))


@functools.cache
def unigram(special, byte_fallback=False):
    """Pieces and scores of a Unigram model after special tokens, the last of which stands for the unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=list(special), unk_token=special[-1], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    if byte_fallback:
        pieces[len(special) : len(special)] = [(byte, -20.0) for byte in BYTES]
    return pieces


def gpt_neox():
    """A class that builds its backend anew when it is loaded; NFC, tokens of spaces added at the end."""
    vocabulary, merges = byte_level(("<|endoftext|>", "<|padding|>"))
    tokenizer = GPTNeoXTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens([AddedToken(" " * number, normalized=False) for number in (24, 12, 2)])
    return tokenizer


def gpt2():
    vocabulary, merges = byte_level(())
    return GPT2Tokenizer(vocab={**vocabulary, "<|endoftext|>": len(vocabulary)}, merges=merges)


def qwen2():
    vocabulary, merges = byte_level(())
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT
    return tokenizer


def llama3():
    """Whole words are taken before any merges; the first token is added to every text."""
    vocabulary, merges = byte_level(whole=True)
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    backend.pre_tokenizer = Sequence([Split(Regex(LLAMA_3), "isolated"), ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_0|>", "<|eot_id|>"])
    begin = len(vocabulary)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT.replace("<|im_start|>", "<|reserved_0|>").replace("<|im_end|>", "<|eot_id|>")
    return tokenizer


def smollm2():
    """Special tokens come first, digits stand alone."""
    vocabulary, merges = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = Sequence([pre_tokenizers.Digits(individual_digits=True), ByteLevel(False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.enable_padding(pad_id=vocabulary["<|im_end|>"], pad_token="<|im_end|>")
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|endoftext|>", **special)
    tokenizer.chat_template = CHAT
    return tokenizer


def roberta():
    """Ids stand in a post-processor of another kind."""
    vocabulary, merges = byte_level(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = ByteLevel(False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def llama2():
    vocabulary, merges = with_byte_fallback(("<unk>", "<s>", "</s>"))
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def gemma():
    vocabulary, merges = with_byte_fallback(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens([AddedToken("<start_of_turn>", special=True), AddedToken("<table>", normalized=False)])
    return tokenizer


def characters():
    """BPE of characters, each of which stays, with a token for the unknown ones."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>", "</s>"], show_progress=False)
    backend.train_from_iterator(TEXT.splitlines(), trainer)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def clip():
    """The last character of a word has a suffix."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = Split(Regex(r"\s?\S+|\s"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(TEXT.splitlines(), trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("</w>", ""), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def t5():
    return T5Tokenizer(vocab=list(unigram(("<pad>", "</s>", "<unk>"))), extra_ids=3)


def unigram_of_bytes():
    """Unigram with byte fallback, which writes every text."""
    backend = Tokenizer(models.Unigram(list(unigram(("</s>", "<unk>"), True)), unk_id=1, byte_fallback=True))
    backend.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


KINDS = {
    make.__name__: make
    for make in (gpt_neox, gpt2, qwen2, llama3, smollm2, roberta, llama2, gemma, characters, clip, t5, unigram_of_bytes)
}


@functools.cache
def make_tokenizer(kind):
    """A tokenizer of a kind, as loaded from files; one for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = KINDS[kind]()
        tokenizer.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder)
