"""The demo's teacher with a part of its vocabulary: orders of tokens, probability of dropped ones, and a search.

All in bits, or tokens, per byte of held-out modules of the standard library; one seed. Orders: by merges, and by use on
training text. Dropped tokens: the teacher with half and with a quarter of its tokens learns from the whole one, which
pushes the probability of a dropped token to its first piece, or leaves it out. Search: subnets of 0.45M to 0.5M
parameters, with the sizes of the vocabulary that it may choose from, healed and distilled.
"""

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from examples.paper.text import spread
from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    BitsPerByte,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    search_subnets,
)
from hf_whittle.data import load_documents, split_documents
from hf_whittle.demo import TEACHER
from hf_whittle.evaluation.texts import count_bytes, encode_texts
from hf_whittle.vocabulary import prune_tokenizer, rank_tokens

from .vocabulary.pretrained import in_pieces
from .vocabulary.rows import Bench, Budget

ORDERED = (1536, 1024, 512)
DROPPED = (1024, 512)
SEARCHED = ((2048, 1024), (2048,), (1024,))
BUDGET = Budget(100_000, 230_000, block_size=256, batch_size=8, window=256, learning_rate=2e-3)
TESTED, RANKED = 64, 400
"""Pieces that students are judged on, and documents whose tokens are counted, evenly over the text."""
SMALL = {"generations": 2, "head_options": 1, "neuron_options": 2, "channel_options": 2, "initial": 2}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    documents = split_documents(load_documents("python-standard-library"), {"search": 0.05, "test": 0.05}, key="name")
    texts = {name: [text for text in of["text"] if text] for name, of in documents.items()}
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    order = rank_tokens(tokenizer, _spread(texts["train"], RANKED))
    pieces, searched, tested = (
        [piece for text in texts[name] for piece in in_pieces(text)] for name in ("train", "search", "test")
    )
    supernet: Any = AutoSuperNetForCausalLM.from_pretrained(TEACHER, dtype="float32")
    bench = Bench(supernet, tokenizer, order, pieces, _spread(tested, TESTED), BUDGET)
    return {
        "orders": _orders(tokenizer, order, texts["test"]),
        "dropped tokens": _dropped(bench),
        "search": [_searched(bench, sizes, _spread(searched, 16)) for sizes in SEARCHED],
    }


def _spread(items: list[str], some: int) -> list[str]:
    return [items[place] for place in spread(len(items), some)]


def _orders(tokenizer: Any, by_use: list[int], texts: list[str]) -> dict[str, Any]:
    """Tokens per byte by size of the vocabulary."""
    number = sum(map(count_bytes, texts))

    def rate(one: Any) -> float:
        return round(sum(map(len, encode_texts(one, texts, add_special_tokens=False))) / number, 4)

    orders = {"by merges": rank_tokens(tokenizer), "by use": by_use}
    rows = {
        name: {str(size): rate(prune_tokenizer(tokenizer, sorted(each[:size]))) for size in ORDERED}
        for name, each in orders.items()
    }
    return {"all tokens": rate(tokenizer), **rows}


def _dropped(bench: Bench) -> dict[str, Any]:
    """The teacher with a part of its vocabulary, cut, then distilled with each treatment of dropped tokens."""
    full = SubnetConfig.full(bench.teacher.config)
    rows = {"all tokens": bench.row("demo", "whole", full, ("cut",))["cut"]}
    for size in DROPPED:
        for treatment in ("first_piece", "renormalized"):
            own = replace(bench, dropped_tokens=treatment)
            row = own.row("demo", f"{treatment} {size}", bench.with_vocabulary(full, size), ("cut", "distilled"))
            rows[f"{size:,} tokens, {treatment}"] = row
    return rows


def _searched(bench: Bench, sizes: tuple[int, ...], pieces: list[str]) -> dict[str, Any]:
    """The student of a search that may choose from some sizes of the vocabulary."""
    space = SearchSpace.from_config(
        bench.teacher.config, layer_wise=True, vocab_sizes=list(sizes), token_order=list(bench.order)
    )
    result = search_subnets(
        bench.teacher,
        space,
        bin=ParameterBin(450e3, 500e3),
        fitness=BitsPerByte(bench.teacher, pieces, bench.tokenizer_of, block_size=256),
        config=AdditiveSearchConfig(**SMALL, seed=0),
        progress=False,
    )
    name = "searched " + " ".join(map(str, sizes))
    row = bench.row("demo", name, result.best, ("cut", "healed", "distilled"))
    kept = result.best.shape.vocab_size or max(sizes)
    return {"sizes": sizes, "chosen": kept, "evaluations": len(result.evaluations), **row}
