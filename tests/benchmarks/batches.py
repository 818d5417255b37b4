"""Tokens a second of an evaluation and of gathering moments, by the tokens of a batch, on one thread.

The model is the demo's teacher, the text random tokens. Each row is the best of some rounds, in which all sizes run in
turn, and in seconds of CPU time, which other programs disturb less.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hf_whittle
from hf_whittle import AutoSuperNetForCausalLM
from hf_whittle.evaluation import cross_entropy
from hf_whittle.healing import supernet_moments

DEMO = Path(hf_whittle.__file__).parent / "demo" / "teacher"
LENGTH, BLOCKS, ROUNDS = 256, 64, 2
SIZES = (1, 4, 16, 64)
"""Blocks of a batch."""


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    supernet = AutoSuperNetForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    ids = torch.randint(supernet.config.vocab_size, (BLOCKS, LENGTH), generator=torch.Generator().manual_seed(0))
    with mock.patch.object(supernet_moments, "blocks_in_batch", lambda *_: BLOCKS):  # as many as are asked for
        return {
            "evaluation": _rows(lambda size: cross_entropy(supernet, ids, size)),
            "moments": _rows(lambda size: supernet_moments.SupernetMoments(supernet, ids, size, False)),
        }


def _rows(work: Callable[[int], Any]) -> dict[str, int]:
    """Tokens a second, by the tokens of a batch."""
    best = dict.fromkeys(SIZES, float("inf"))
    for _ in range(ROUNDS):
        for size in SIZES:
            started = time.process_time()
            work(size)
            best[size] = min(best[size], time.process_time() - started)
    return {str(size * LENGTH): round(BLOCKS * LENGTH / seconds) for size, seconds in best.items()}
