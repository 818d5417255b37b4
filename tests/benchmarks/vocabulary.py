"""What a smaller vocabulary costs a real model: bits per byte of its slices, which are not trained.

A pretrained model keeps a part of its tokens, as `rank_tokens` orders them on the calibration text of the recovery
benchmark. It reads the same windows of the WikiText-2 test text, each in its own tokens; the first token of a window is
not predicted. So the students of the recovery benchmark, which keep all tokens and lose layers or widths instead,
compare with these at equal parameters. Environment variables are those of the recovery benchmark.
"""

import math
import os
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.data import load_documents
from hf_whittle.data.text_files import find_files
from hf_whittle.evaluation import cross_entropy
from hf_whittle.vocabulary import prune_tokenizer, rank_tokens

from .recovery.rows import load
from .recovery.texts import CALIBRATION, MODEL, Case, real_case

SIZES = (24_576, 12_288, 6_144, 3_072)
"""Tokens that are kept, beside all of them."""
TEXTS = 200
"""Documents of calibration text, evenly over all of them, whose tokens are counted."""


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    case = real_case()
    if case is None:
        raise SystemExit("this benchmark is of a real model")
    tokenizer, teacher = AutoTokenizer.from_pretrained(os.environ[MODEL]), load(case.model)
    texts = [tokenizer.decode(window) for window in case.windows]
    order = rank_tokens(tokenizer, calibration_texts())
    rows = {}
    for size in (teacher.config.vocab_size, *SIZES):
        kept = sorted(order[:size])
        subnet = SubnetConfig.full(teacher.config)
        if size < teacher.config.vocab_size:
            subnet, read = replace(subnet, vocab_size=tuple(kept)), prune_tokenizer(tokenizer, kept)
        else:
            read = tokenizer
        rows[f"{size:,} tokens"] = row = row_of(extract_subnet(teacher, subnet, dtype=torch.float32), read, texts)
        print(size, row, flush=True)
    return {"model": case.name, "texts": case.facts, "rows": rows, "bits_per_byte_of_a_nat": per_nat(case, texts)}


def calibration_texts() -> list[str]:
    documents = load_documents(files=find_files(os.environ[CALIBRATION].split(os.pathsep)))
    return [documents[i * len(documents) // TEXTS]["text"] for i in range(min(TEXTS, len(documents)))]


def row_of(student: Any, tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    """Bits per byte of a student on texts, each of them one window."""
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        nats += cross_entropy(student.eval(), ids, batch_size=1) * (ids.numel() - 1)
        tokens += ids.numel()
    size = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": round(nats / size / math.log(2), 4),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "tokens_per_byte": round(tokens / size, 4),
    }


def per_nat(case: Case, texts: list[str]) -> float:
    """Bits per byte of these windows for each nat of the mean loss of a token of the whole vocabulary."""
    predicted = case.windows.numel() - len(case.windows)
    return round(predicted / sum(len(text.encode()) for text in texts) / math.log(2), 6)
