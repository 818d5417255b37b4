"""Latency of subnets as a polynomial fitted to measurements, and bins of it."""

import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..architectures.dimensions import CHANNELS, VOCABULARY
from ..errors import CheckpointError, SubnetError
from ..files.text import read_json, write_json
from ..progress import progress_bar
from ..subnet import Shape, SubnetConfig
from .bins import Bin, ParameterBin
from .polynomial import Polynomial, parameter_polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..models.supernet import SuperNetModel
    from .timing import Phase


class Samples(Protocol):
    """A source of subnets, such as a `SearchSpace`, whose module imports costs and cannot be imported here."""

    def sample(self, rng: Random, bin: Bin) -> SubnetConfig: ...


@dataclass(frozen=True)
class LatencyModel:
    """Latency of a super-network's subnets on one device, as a polynomial of their sizes.

    Use `LatencyModel.fit`. The polynomial is fitted by non-negative least squares on relative errors, so it never falls
    as a size grows, and a `LatencyBin` can be searched like any other bin.

    Args:
        polynomial (`Polynomial`): seconds of a forward pass.
        error (`float`): median relative error on measured subnets that the polynomial was not fitted to. A bin should
            be wider than that.
        device (`str`): name of the device.
        dtype (`str`): data type of the weights.
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
    phase: "Phase"
    supernet: str

    @classmethod
    def fit(
        cls,
        supernet: "SuperNetModel",
        space: Samples,
        *,
        batch_size: int = 1,
        sequence_length: int = 512,
        phase: "Phase" = "prefill",
        subnets: int = 40,
        repeats: int = 7,
        seed: int = 0,
        progress: bool = True,
    ) -> "LatencyModel":
        """Measure random subnets of a space and fit a polynomial to their latencies.

        Args:
            supernet (`SuperNetModel`): super-network on the device and in the data type to measure.
            space (`SearchSpace`): space to draw subnets from.
            batch_size (`int`, *optional*, defaults to 1): sequences at a time.
            sequence_length (`int`, *optional*, defaults to 512): tokens of a sequence.
            phase (`str`, *optional*, defaults to `"prefill"`): `"prefill"` or `"decode"`.
            subnets (`int`, *optional*, defaults to 40): number of subnets to measure; a quarter of them tests the fit.
            repeats (`int`, *optional*, defaults to 7): passes that are counted, for each subnet.
            seed (`int`, *optional*, defaults to 0): seed of the draws.
            progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

        Raises:
            ValueError: if there are too few subnets, or a setting is out of range.
            SubnetError: if the model is no super-network.
        """
        from ..models.placement import device_name  # imports torch

        if not hasattr(supernet, "active_subnet"):
            raise SubnetError(f"a {type(supernet).__name__} has no subnets to time; load it as a super-network")
        rng = Random(seed)
        drawn = [space.sample(rng, ParameterBin(0, float("inf"))).shape for _ in range(max(subnets, 1))]
        fitted = latency_polynomial(supernet.full_config, any(shape.vocab_size is not None for shape in drawn))
        least = 2 * len(fitted.terms)
        if subnets < least:
            raise ValueError(f"subnets must be at least {least}, twice the coefficients to fit, got {subnets}")
        how: dict[str, Any] = {"batch_size": batch_size, "sequence_length": sequence_length, "phase": phase}
        seconds = _medians(
            supernet, progress_bar(drawn, desc="latency", unit="subnet", disable=not progress), repeats, how
        )
        held_out = subnets // 4
        tried = fit_polynomial(fitted, drawn[held_out:], seconds[held_out:])
        errors = [abs(tried(shape) / true - 1) for shape, true in zip(drawn[:held_out], seconds, strict=False)]
        return cls(
            polynomial=fit_polynomial(fitted, drawn, seconds),
            error=statistics.median(errors),
            device=device_name(supernet.device),
            dtype=str(supernet.dtype).removeprefix("torch."),
            supernet=fingerprint_of_sizes(supernet.full_config),
            **how,
        )

    def __call__(self, subnet: SubnetConfig) -> float:
        """Predicted seconds of a forward pass."""
        return self.polynomial(subnet)

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, to be loaded for later searches: measuring anew would give other coefficients."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "LatencyModel":
        """Read a model from a file that `save` wrote.

        Raises:
            CheckpointError: if the file holds something else, or an older version wrote it.
        """
        values = read_json(path)
        try:
            return cls(**{**values, "polynomial": Polynomial.from_dict(values["polynomial"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} holds no latency model, or one of an older version of hf_whittle, whose polynomial had other "
                "terms: call LatencyModel.fit again and save the new one"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "polynomial": self.polynomial.to_dict()}

    def check(self, config: "PreTrainedConfig") -> None:
        """Raise `SubnetError` unless the model was fitted to a super-network of these sizes."""
        if fingerprint_of_sizes(config) != self.supernet:
            raise SubnetError(
                "this latency model was fitted to a super-network of other sizes; call LatencyModel.fit with this one"
            )


@dataclass(frozen=True)
class LatencyBin(Bin):
    """An interval of seconds of a forward pass, as predicted by a latency model.

    Args:
        low (`float`): least seconds.
        high (`float`): most seconds.
        model (`LatencyModel`): fitted to the super-network on the device in question.
    """

    of = "seconds"
    model: LatencyModel

    def to_dict(self) -> dict[str, Any]:
        return {"cost": self.of, "low": self.low, "high": self.high, "model": self.model.to_dict()}

    def cost(self, config: "PreTrainedConfig") -> Polynomial:
        self.model.check(config)
        return self.model.polynomial


def _medians(supernet: "SuperNetModel", shapes: Iterable[Shape], repeats: int, how: dict[str, Any]) -> list[float]:
    """Median seconds of a forward pass of a subnet of each shape."""
    from .timing import measure_latency

    seconds = []
    for shape in shapes:
        with supernet.active_subnet(_first_entries(shape)):
            seconds.append(measure_latency(supernet, repeats=repeats, **how).median)
    return seconds


def latency_polynomial(config: "PreTrainedConfig", varies_vocabulary: bool = False) -> Polynomial:
    """The terms of a latency: those of the parameters, each also without the channels.

    A matrix takes time for its multiplications, and what it gives for its size.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network.
        varies_vocabulary (`bool`, *optional*, defaults to `False`): whether subnets keep parts of the vocabulary.
    """
    parameters = parameter_polynomial(config)
    constant = () if varies_vocabulary else (VOCABULARY.name,)
    terms = [_without(names, *constant) for names in parameters.terms]
    return Polynomial(
        dict.fromkeys((*(_without(names, CHANNELS.name) for names in terms), *terms), 1), parameters.shared
    )


def _without(names: tuple[str, ...], *left_out: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in left_out)


def fit_polynomial(polynomial: Polynomial, shapes: Sequence[Shape], costs: Sequence[float]) -> Polynomial:
    """Give a polynomial coefficients of least squared relative error, none of them negative."""
    from scipy.optimize import nnls

    terms = [Polynomial({names: 1}, polynomial.shared) for names in polynomial.terms]
    rows = np.array([[term(shape) / cost for term in terms] for shape, cost in zip(shapes, costs, strict=True)])
    scale = np.maximum(rows.max(axis=0), 1e-30)
    coefficients, _ = nnls(rows / scale, np.ones(len(rows)))
    return polynomial.with_coefficients((coefficients / scale).tolist())


def _first_entries(shape: Shape) -> SubnetConfig:
    """A subnet of these sizes that is sliced without gathering."""
    kept = {dimension.name: getattr(shape, dimension.name) for dimension in shape.dimensions}
    return SubnetConfig(num_hidden_layers=shape.num_hidden_layers, **kept)


def fingerprint_of_sizes(config: "PreTrainedConfig") -> str:
    of_layers = asdict(Shape.from_config(config))
    sizes = (config.model_type, of_layers.pop(VOCABULARY.name), of_layers)
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]
