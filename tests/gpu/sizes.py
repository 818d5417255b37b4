"""Sizes of the measurements: real models on a GPU, tiny ones on a CPU."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GPTNeoXConfig

from .comparing import DEVICE, HAS_GPU

PYTHIA_160M = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
PYTHIA_410M = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Args:
        entries (`int`): entries of the vocabulary.
        loss_tokens (`tuple[int, ...]`): rows of the distillation loss.
        loss_channels (`int`): channels of its student and its teacher.
        models (`dict`): sizes of models by name; the last is the teacher of all.
        search_blocks (`tuple[int, int]`): blocks and their length that a candidate is evaluated on.
        calibration_blocks (`int`): blocks of the same length for healing and probes.
        candidates (`int`): candidates evaluated in a row.
        batch (`tuple[int, int]`): blocks of a training batch and their length.
        steps (`int`): training steps that are timed.
        repeats (`int`): number of times each function is timed.
    """

    entries: int = 50_304
    loss_tokens: tuple[int, ...] = (8_192, 32_768)
    loss_channels: int = 1_024
    models: tuple[tuple[str, dict[str, int]], ...] = (("160M", PYTHIA_160M), ("410M", PYTHIA_410M))
    search_blocks: tuple[int, int] = (4, 1_024)
    calibration_blocks: int = 32
    candidates: int = 8
    batch: tuple[int, int] = (8, 2_048)
    steps: int = 8
    repeats: int = 5


REAL = Sizes()
SMALL = replace(
    REAL,
    entries=512,
    loss_tokens=(256,),
    loss_channels=64,
    models=(
        ("tiny", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}),
        ("small", {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}),
    ),
    search_blocks=(4, 64),
    calibration_blocks=16,
    candidates=2,
    batch=(4, 64),
    steps=3,
    repeats=2,
)
SIZES = REAL if HAS_GPU else SMALL


def config_of(model: dict[str, int]) -> GPTNeoXConfig:
    return GPTNeoXConfig(vocab_size=SIZES.entries, max_position_embeddings=2_048, **model)


def build(kind: Any, model: dict[str, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model of random weights on the device."""
    torch.manual_seed(seed)
    with DEVICE:
        return kind(config_of(model)).to(dtype)


def random_blocks(number: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(SIZES.entries, (number, length), generator=torch.Generator().manual_seed(seed))
