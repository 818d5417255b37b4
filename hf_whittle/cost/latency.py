"""Latency on the device at hand: of a model, and of any subnet as a polynomial fitted to measurements."""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import SubnetError
from ..evaluation import evaluating
from ..files.text import read_json, write_json
from ..models.weights import input_device
from ..subnet import Shape, SubnetConfig
from .bins import Bin, ParameterBin
from .polynomial import Polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..models.supernet import SuperNetModel

Phase = Literal["prefill", "decode"]


class Samples(Protocol):
    """Anything that draws subnets, as a `SearchSpace` does."""

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig: ...


@dataclass(frozen=True)
class Latency:
    """Seconds that one forward pass took: the median, and the 10th and 90th percentile around it."""

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
    """Time forward passes of a model, or of the subnet that is active in a super-network, on the device it lies on.

    Args:
        model (`PreTrainedModel`): a causal language model; its training mode is restored.
        batch_size (`int`, *optional*, defaults to 1): sequences at a time.
        sequence_length (`int`, *optional*, defaults to 512): tokens of a sequence.
        phase (`str`, *optional*, defaults to `"prefill"`): `"prefill"` reads the whole sequence, `"decode"` one token
            more, with the keys and values of the sequence in a cache.
        warmup (`int`, *optional*, defaults to 3): passes that do not count.
        repeats (`int`, *optional*, defaults to 20): passes that count.

    Returns:
        `Latency`: seconds.

    Raises:
        ValueError: if a setting is out of range.
    """
    if phase not in ("prefill", "decode"):
        raise ValueError(f"phase must be 'prefill' or 'decode', got {phase!r}")
    if min(batch_size, sequence_length, repeats) < 1 or warmup < 0:
        raise ValueError("batch_size, sequence_length and repeats must be at least 1, warmup at least 0")
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


@dataclass(frozen=True)
class LatencyModel:
    """Latency of the subnets of a super-network on one device, as a polynomial of their sizes.

    Use `LatencyModel.fit`. The polynomial is fitted by non-negative least squares on relative errors, so that it
    never falls as a size grows, and a `LatencyBin` can be searched like any other.

    Args:
        polynomial (`Polynomial`): seconds of a forward pass.
        error (`float`): median relative error on measured subnets the polynomial was not fitted to; look at it before
            trusting a bin narrower than that.
        device (`str`): where it was measured.
        dtype (`str`): of the weights.
        batch_size (`int`): sequences at a time.
        sequence_length (`int`): tokens of a sequence.
        phase (`str`): `"prefill"` or `"decode"`.
        supernet (`str`): fingerprint of the super-network's sizes.
    """

    polynomial: Polynomial
    error: float
    device: str
    dtype: str
    batch_size: int
    sequence_length: int
    phase: Phase
    supernet: str

    @classmethod
    def fit(
        cls,
        supernet: "SuperNetModel",
        space: "Samples",
        *,
        batch_size: int = 1,
        sequence_length: int = 512,
        phase: Phase = "prefill",
        subnets: int = 40,
        repeats: int = 7,
        seed: int = 0,
        progress: bool = True,
    ) -> "LatencyModel":
        """Measure random subnets of a space and fit a polynomial to their latencies.

        Args:
            supernet (`SuperNetModel`): on the device and in the dtype in question.
            space (`SearchSpace`): space to draw subnets from.
            batch_size (`int`, *optional*, defaults to 1): as in `measure_latency`, like the next three.
            sequence_length (`int`, *optional*, defaults to 512): tokens of a sequence.
            phase (`str`, *optional*, defaults to `"prefill"`): `"prefill"` or `"decode"`.
            repeats (`int`, *optional*, defaults to 7): passes that count, for each subnet.
            subnets (`int`, *optional*, defaults to 40): how many to measure; a quarter of them tests the fit.
            seed (`int`, *optional*, defaults to 0): seed of the draws.
            progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

        Raises:
            ValueError: if there are too few subnets, or a setting is out of range.
            SubnetError: if the model is no super-network.
        """
        if not hasattr(supernet, "active_subnet"):
            raise SubnetError(f"a {type(supernet).__name__} has no subnets to time; load it as a super-network")
        if subnets < 16:
            raise ValueError(f"subnets must be at least 16, twice the coefficients to fit, got {subnets}")
        rng = Random(seed)
        drawn = [space.sample(rng, ParameterBin(0, float("inf"))).shape for _ in range(subnets)]
        seconds = []
        for shape in tqdm(drawn, desc="latency", unit="subnet", disable=not progress):
            with supernet.active_subnet(_first_entries(shape)):
                measured = measure_latency(
                    supernet, batch_size=batch_size, sequence_length=sequence_length, phase=phase, repeats=repeats
                )
            seconds.append(measured.median)
        held_out = subnets // 4
        tried = fit_polynomial(drawn[held_out:], seconds[held_out:])
        errors = [abs(tried(shape) / true - 1) for shape, true in zip(drawn[:held_out], seconds, strict=False)]
        return cls(
            polynomial=fit_polynomial(drawn, seconds),
            error=statistics.median(errors),
            device=_device_name(supernet.device),
            dtype=str(supernet.dtype).removeprefix("torch."),
            batch_size=batch_size,
            sequence_length=sequence_length,
            phase=phase,
            supernet=_fingerprint(supernet.full_config),
        )

    def __call__(self, subnet: SubnetConfig) -> float:
        """Predicted seconds of a forward pass."""
        return self.polynomial(subnet)

    def save(self, path: str | Path) -> None:
        """Write the model as JSON; measuring anew would give other coefficients, and with them another bin."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "LatencyModel":
        """Read a model that `save` wrote."""
        values = read_json(path)
        return cls(**{**values, "polynomial": Polynomial(**values["polynomial"])})

    def check(self, config: "PreTrainedConfig") -> None:
        """Raise `SubnetError` unless the model was fitted to a super-network of these sizes."""
        if _fingerprint(config) != self.supernet:
            raise SubnetError(
                "this latency model was fitted to a super-network of other sizes; call LatencyModel.fit with this one"
            )


def fit_polynomial(shapes: Sequence[Shape], costs: Sequence[float]) -> Polynomial:
    """The polynomial of least squared relative error with no negative coefficient."""
    from scipy.optimize import nnls

    terms = [Polynomial(**{item.name: 1}) for item in fields(Polynomial)]
    rows = np.array([[term(shape) / cost for term in terms] for shape, cost in zip(shapes, costs, strict=True)])
    scale = np.maximum(rows.max(axis=0), 1e-30)
    coefficients, _ = nnls(rows / scale, np.ones(len(rows)))
    return Polynomial(*(coefficients / scale).tolist())


def _first_entries(shape: Shape) -> SubnetConfig:
    """A subnet of these sizes that costs no gathering."""
    return SubnetConfig(shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads, shape.intermediate_size)


def _fingerprint(config: "PreTrainedConfig") -> str:
    sizes = (config.model_type, config.vocab_size, asdict(Shape.from_config(config)))
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
