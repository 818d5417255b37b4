"""Time forward passes of a model on its device."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..evaluation import evaluating
from ..models.placement import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass: the median, and the 10th and 90th percentile around it."""

    median: float
    low: float
    high: float


def measure_latency(
    model: "PreTrainedModel",
    *,
    batch_size: int = 1,
    sequence_length: int = 512,
    phase: Phase = "prefill",
    warmup: int = 3,
    repeats: int = 20,
) -> Latency:
    """Time forward passes of a model, or of the active subnet of a super-network, on the device that holds it.

    Args:
        model (`PreTrainedModel`): a causal language model; its training mode is restored.
        batch_size (`int`, *optional*, defaults to 1): sequences at a time.
        sequence_length (`int`, *optional*, defaults to 512): tokens of a sequence.
        phase (`str`, *optional*, defaults to `"prefill"`): `"prefill"` reads the whole sequence, `"decode"` one token
            more, with the keys and values of the sequence cached.
        warmup (`int`, *optional*, defaults to 3): passes that are not counted.
        repeats (`int`, *optional*, defaults to 20): passes that are counted.

    Returns:
        `Latency`: seconds.

    Raises:
        ValueError: if a setting is out of range.
    """
    if phase not in ("prefill", "decode"):
        raise ValueError(f"phase must be 'prefill' or 'decode', got {phase!r}")
    if min(batch_size, sequence_length, repeats) < 1 or warmup < 0:
        raise ValueError(
            "batch_size, sequence_length and repeats must be at least 1, warmup at least 0, got "
            f"{batch_size}, {sequence_length}, {repeats} and {warmup}"
        )
    with evaluating(model), torch.inference_mode():
        step = _step(model, batch_size, sequence_length, phase)
        seconds = [_seconds(step, input_device(model)) for _ in range(warmup + repeats)][warmup:]
    low, high = np.percentile(seconds, [10, 90])
    return Latency(statistics.median(seconds), float(low), float(high))


def _step(model: "PreTrainedModel", batch_size: int, sequence_length: int, phase: Phase) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch_size, sequence_length + 1), generator=generator)
    tokens = tokens.to(input_device(model))
    if phase == "prefill":
        return lambda: model(input_ids=tokens[:, :-1], use_cache=False)
    cache = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values

    def decode() -> None:
        model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return decode


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    step()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
