"""The rows of a pretrained model, such as SmolLM2-135M."""

import os
from typing import Any

import torch
from transformers import AutoTokenizer

from hf_whittle import SubnetConfig
from hf_whittle.cost import num_parameters
from hf_whittle.data import load_documents
from hf_whittle.data.text_files import find_files
from hf_whittle.vocabulary import rank_tokens

from ..recovery.rivals.cut import DEPTH
from ..recovery.rows import load
from ..recovery.students import Chooser, angular_distances, score
from ..recovery.texts import CALIBRATION, MODEL, Case, real_case
from .rows import Bench, Budget

BUDGET = Budget(32_000, 100_000, block_size=512, batch_size=4, window=4096, learning_rate=3e-4)
ALONE, ALONE_ON_OWN_TEXT = (24_576,), (24_576, 12_288)
"""Vocabularies of students that keep all else, judged on the test text and on text like that of the calibration."""
BOTH = ("healed", "distilled")
EQUAL = {(0.65, 49_152): BOTH, (0.65, 12_288): BOTH, (0.895, 49_152): ("healed",)}
"""Stages of students that lose layers, by share of all parameters and size of the vocabulary.

The last has as many parameters as all layers have with the vocabulary in `ALONE`.
"""
PIECE = 4_000
"""Characters of a piece of text at most."""
TESTED = 16
"""Pieces of other documents, on which students are judged that were neither healed nor trained."""
RANKED = 200
"""Documents, evenly over the text, whose tokens are counted."""


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    case = real_case()
    if case is None:
        raise SystemExit("this benchmark is of a pretrained model")
    (bench, held_out), chooser = _bench(case), _chooser(case)
    full = SubnetConfig.full(bench.teacher.config)
    rows = {"whole": bench.row(case.name, "whole", full, ("cut",))}
    for (share, size), stages in EQUAL.items():
        subnet = _cut(bench, chooser, share, size)
        name = f"{share:.0%}, {size:,} tokens"
        rows[name] = {"layers": len(subnet.layers)} | bench.row(case.name, name, subnet, stages)
    for size in ALONE:
        name = f"all layers, {size:,} tokens"
        rows[name] = bench.row(case.name, name, bench.with_vocabulary(full, size), ("cut",))
    own = {}
    bench.test = held_out
    for size in (bench.teacher.config.vocab_size, *ALONE_ON_OWN_TEXT):
        name = f"own text, all layers, {size:,} tokens"
        own[name] = bench.row(case.name, name, bench.with_vocabulary(full, size), ("cut",))
    return {"model": case.name, "texts": case.facts, "rows": rows, "rows_on_own_text": own}


def _bench(case: Case) -> tuple[Bench, list[str]]:
    """The bench, judged on the test text, and pieces of documents whose tokens are not counted."""
    tokenizer = AutoTokenizer.from_pretrained(os.environ[MODEL])
    documents = load_documents(files=find_files(os.environ[CALIBRATION].split(os.pathsep)))["text"]
    counted = [i * len(documents) // RANKED for i in range(min(RANKED, len(documents)))]
    order = rank_tokens(tokenizer, [documents[place] for place in counted])
    others = [piece for place in sorted({*range(len(documents))} - {*counted}) for piece in in_pieces(documents[place])]
    own = [others[i * len(others) // TESTED] for i in range(TESTED)]
    test = [tokenizer.decode(window) for window in case.windows]
    pieces = [piece for text in documents for piece in in_pieces(text)]
    return Bench(load(case.model), tokenizer, order, pieces, test, BUDGET), own


def in_pieces(text: str) -> list[str]:
    """A text in pieces of at most `PIECE` characters."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def _chooser(case: Case) -> Chooser:
    teacher = load(case.model)
    scores = score(teacher, case.calibration, "importance", case.folder)
    with torch.no_grad():
        distances = angular_distances(teacher, case.calibration)
    return Chooser(teacher.config, scores, distances)


def _cut(bench: Bench, chooser: Chooser, share: float, size: int) -> SubnetConfig:
    """The student of this size of the vocabulary with a share of all parameters, as nearly as whole layers allow."""
    config = bench.teacher.config
    whole, full = num_parameters(config), SubnetConfig.full(config)
    of_vocabulary = num_parameters(config, bench.with_vocabulary(full, size))
    cut = (of_vocabulary - share * whole) / whole
    of_layer = (whole - num_parameters(config, full.with_layers(range(len(full.layers) - 1)))) / whole
    subnet = full if cut < of_layer / 2 else chooser(DEPTH, cut)
    return bench.with_vocabulary(subnet, size)
