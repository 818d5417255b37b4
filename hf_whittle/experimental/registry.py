"""Registry of experimental fitnesses, in the form of `fitness.registry`."""

from typing import TYPE_CHECKING

from ..fitness.registry import FitnessInputs, MakeFitness

if TYPE_CHECKING:
    from ..fitness.base import Fitness


def _magnitude(inputs: FitnessInputs) -> "Fitness":
    from .proxies import WeightMagnitude

    return WeightMagnitude(inputs.supernet)


def _importance(inputs: FitnessInputs) -> "Fitness":
    from .proxies import RetainedImportance

    return RetainedImportance(inputs.importance)


def _gradient_norm(inputs: FitnessInputs) -> "Fitness":
    from .proxies import GradientNorm

    return GradientNorm(inputs.supernet, inputs.search_blocks, inputs.batch_size)


def _snip(inputs: FitnessInputs) -> "Fitness":
    from .proxies import Snip

    return Snip(inputs.supernet, inputs.search_blocks, inputs.batch_size)


def _synflow(inputs: FitnessInputs) -> "Fitness":
    from .proxies import Synflow

    return Synflow(inputs.supernet)


def _jacobian_covariance(inputs: FitnessInputs) -> "Fitness":
    from .proxies import JacobianCovariance

    return JacobianCovariance(inputs.supernet, inputs.search_blocks, inputs.batch_size)


FITNESSES: dict[str, MakeFitness] = {
    "magnitude": _magnitude,
    "importance": _importance,
    "gradient-norm": _gradient_norm,
    "snip": _snip,
    "synflow": _synflow,
    "jacobian-covariance": _jacobian_covariance,
}
"""Functions that make each experimental fitness of a recipe, by its name."""
