"""Evaluations of a search in words, for pictures: what their fitness is, and which of them compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..fitness.registry import AXES
from .algorithm import Evaluation

ALL = "all tokens"
ORIGINS = {
    "sample": "drawn at random",
    "mutation": "mutation",
    "crossover": "crossover",
    "answer": "predicted to be best",
    "replacement": "one part replaced",
}
"""Names of the origins of candidates for people; an algorithm may have others."""


@dataclass(frozen=True)
class Scale:
    """Evaluations that compare with each other: those on the same share of the tokens.

    Args:
        share (`float`): the share; that of the answers is 1.
        axis (`str`): the fitness in words.
        tokens (`str`): the share in words.
        numbered (`tuple[tuple[int, Evaluation], ...]`): the evaluations of finite fitness with their numbers in the
            whole search, counted from 1.
    """

    share: float
    axis: str
    tokens: str
    numbered: tuple[tuple[int, Evaluation], ...]

    @property
    def is_positive(self) -> bool:
        """Whether every fitness is above 0, so that a logarithmic axis can show it."""
        return all(evaluation.fitness > 0 for _, evaluation in self.numbered)


def scales(evaluations: Sequence[Evaluation], settings: Mapping[str, Any], *, in_bins: bool = True) -> list[Scale]:
    """Group the evaluations of a search by share, from all tokens down; without any, there is one empty group.

    Args:
        evaluations (`Sequence[Evaluation]`): the evaluations in their order.
        settings (`Mapping`): settings of the search.
        in_bins (`bool`, *optional*, defaults to `True`): whether to leave out those in no bin.
    """
    axes = fitness_axes(settings)
    grouped: dict[float, list[tuple[int, Evaluation]]] = {1.0: []}
    for number, evaluation in enumerate(evaluations, 1):
        if math.isfinite(evaluation.fitness) and (evaluation.bins or not in_bins):
            grouped.setdefault(float(evaluation.share), []).append((number, evaluation))
    return [
        Scale(share, axes.get(share, axes[1.0]), _tokens(share, share in axes), tuple(grouped[share]))
        for share in sorted(grouped, reverse=True)
    ]


def fitness_axes(settings: Mapping[str, Any]) -> dict[float, str]:
    """The fitness of a search in words, for the name of an axis; of a staged one, that of each share."""
    fitness = settings.get("fitness", {})
    stages = fitness.get("stages", {"1.0": fitness})
    return {float(share): _axis(stage) for share, stage in stages.items()}


def _axis(fitness: Mapping[str, Any]) -> str:
    name = str(fitness.get("name", "fitness"))
    steps = fitness.get("steps", 0)
    if name not in AXES:
        return f"{name} after {steps} training steps" if steps else name
    scores = fitness.get("scores", {})
    return AXES[name].format(steps=steps or "some", criterion=scores.get("criterion", "measured"))


def _tokens(share: float, has_stage: bool) -> str:
    """A share in words; the stages of a fitness read all tokens of their own."""
    if share == 1 or has_stage:
        return ALL
    fraction = Fraction(share).limit_denominator(1000)
    return f"{fraction.numerator}/{fraction.denominator} of the tokens"


def origin_in_words(origin: str) -> str:
    """Name of an origin of candidates for people."""
    return ORIGINS.get(origin, origin)
