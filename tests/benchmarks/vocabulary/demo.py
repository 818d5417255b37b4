"""The demo's teacher: bins of its parameters, and vocabularies in each."""

from typing import Any

from transformers import AutoTokenizer

from hf_whittle import AdditiveSearchConfig, AutoSuperNetForCausalLM, ParameterBin, SearchSpace, search_subnets
from hf_whittle.cost import num_parameters
from hf_whittle.data import load_documents, split_documents
from hf_whittle.demo import TEACHER
from hf_whittle.fitness.bits_per_byte import BitsPerByte
from hf_whittle.subnet import SubnetConfig
from hf_whittle.vocabulary import rank_tokens

from .rows import Bench, Budget

BUDGET = Budget(75_000, 200_000, block_size=256, batch_size=8, window=256, learning_rate=2e-3)
SHARES = (0.5, 0.25)
"""Bins: shares of the teacher's parameters, each to 3% above."""
SIZES = (2048, 1024, 512)
PIECE = 4_000
"""Characters of a piece of text at most."""
FITNESS, TEST = 4, 48
"""Pieces that searches are evaluated on, and that students are judged on."""


def measure() -> dict[str, Any]:
    bench, fitness_texts = _bench()
    full = num_parameters(bench.teacher.full_config)
    whole = bench.row("demo", "whole", SubnetConfig.full(bench.teacher.full_config), ("cut",))
    rows: dict[str, Any] = {}
    for share in SHARES:
        bin = ParameterBin(int(share * full), int(1.03 * share * full))
        for size in SIZES:
            name = f"{share:.0%}, {size:,} tokens"
            subnet = _found(bench, fitness_texts, bin, size)
            if subnet is not None:
                rows[name] = {"subnet": _short(subnet), **bench.row("demo", name, subnet, ("healed", "distilled"))}
    return {"teacher": whole, "rows": rows}


def _bench() -> tuple[Bench, list[str]]:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    supernet = AutoSuperNetForCausalLM.from_pretrained(TEACHER, dtype="float32")
    splits = split_documents(load_documents("python-standard-library"), {"search": 0.05, "test": 0.05}, key="name")
    pieces = {name: _pieces(split["text"]) for name, split in splits.items()}
    test, fitness = _spread(pieces["test"], TEST), _spread(pieces["search"], FITNESS)
    return Bench(supernet, tokenizer, rank_tokens(tokenizer), pieces["train"], test, BUDGET), fitness


def _pieces(texts: list[str]) -> list[str]:
    return [text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE)]


def _spread(pieces: list[str], number: int) -> list[str]:
    return [pieces[place * len(pieces) // number] for place in range(number)]


def _found(bench: Bench, texts: list[str], bin: ParameterBin, size: int) -> SubnetConfig | None:
    """The subnet that a search finds; `None` if a vocabulary leaves the bin empty."""
    supernet = bench.teacher
    sizes = {} if bench.kept(size) is None else {"vocab_sizes": (size,), "token_order": bench.order}
    space = SearchSpace.from_config(supernet.config, granularity="coarse", layer_wise=True, **sizes)
    if not next(iter(space.reachable_pairs(bin)), None):
        return None
    fitness = BitsPerByte(supernet, texts, bench.tokenizer_of, block_size=BUDGET.window)
    config = AdditiveSearchConfig(generations=2, seed=0)
    return search_subnets(supernet, space, bin=bin, config=config, fitness=fitness, progress=False).best


def _short(subnet: SubnetConfig) -> str:
    layers = "".join(map(str, subnet.layers))
    return f"{subnet.hidden_size} channels, layers {layers}, {subnet.num_attention_heads} heads, " + (
        f"{subnet.intermediate_size} neurons"
    )
