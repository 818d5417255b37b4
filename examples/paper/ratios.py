"""The FLOPs ratio of experiment 1: what random initialization takes over what a searched student takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .intervals import Modules, Point, flops_to, total

STUDENT = "ours, healed"


def is_random(arm: str) -> bool:
    return arm.startswith("random")


@dataclass(frozen=True)
class Curve:
    """The best student of an arm and seed at each budget, chosen on search text.

    Args:
        points (`Sequence[Point]`): all points of the arm and seed, of all learning rates.
    """

    points: Sequence[Point]

    @cached_property
    def best(self) -> dict[int, Point]:
        """Points by training tokens."""
        worst_first = sorted(self.points, key=lambda point: -point["search"])
        return dict(sorted({point["tokens"]: point for point in worst_first}.items()))

    def flops(self, sweeps: bool = False, extra: int = 0) -> list[int]:
        """All FLOPs at each budget; with those of every learning rate tried at it, if `sweeps`."""
        return [extra + (self._swept(tokens) if sweeps else total(point)) for tokens, point in self.best.items()]

    def _swept(self, tokens: int) -> int:
        """FLOPs of a search and of healing once, and of all trainings of a budget."""
        of_budget = [point["flops"] for point in self.points if point["tokens"] == tokens]
        trainings = sum(flops.get(name, 0) for flops in of_budget for name in ("training", "teacher"))
        return trainings + sum(cost for name, cost in of_budget[0].items() if name not in ("training", "teacher"))


def curves(points: Sequence[Point], seed: int) -> dict[str, Curve]:
    """Curves of a seed by arm."""
    own = [point for point in points if point["seed"] == seed or (point["seed"] is None and seed == 0)]
    return {arm: Curve([p for p in own if p["arm"] == arm]) for arm in dict.fromkeys(p["arm"] for p in own)}


def baseline(of_seed: dict[str, Curve], tokens: int, distilled: bool = True) -> tuple[str, Point] | None:
    """The arm of random initialization that is best on search text after so many tokens, and its student.

    Args:
        of_seed (`dict[str, Curve]`): curves by arm.
        tokens (`int`): the budget.
        distilled (`bool`, *optional*, defaults to `True`): whether arms that learn from the teacher are among them.
    """
    arms = [arm for arm in of_seed if is_random(arm) and (distilled or not arm.endswith("distilled"))]
    found = [(of_seed[arm].best[tokens]["search"], arm) for arm in arms if tokens in of_seed[arm].best]
    return (min(found)[1], of_seed[min(found)[1]].best[tokens]) if found else None


def ratio(
    of_seed: dict[str, Curve], tokens: int, modules: Modules, *, sweeps: bool = False, teacher_training: int = 0
) -> np.ndarray | None:
    """FLOPs of the cheapest random initialization to the best one's loss, over those of the student, by draw.

    Args:
        of_seed (`dict[str, Curve]`): curves by arm.
        tokens (`int`): the budget of random initialization.
        modules (`Modules`): draws of test modules.
        sweeps (`bool`, *optional*, defaults to `False`): whether all learning rates tried are charged.
        teacher_training (`int`, *optional*): FLOPs of training the teacher, charged to the student; random
            initialization then learns from text alone.
    """
    reached = baseline(of_seed, tokens, distilled=not teacher_training)
    if reached is None or STUDENT not in of_seed:
        return None
    random = [
        _by_draw(curve, modules, sweeps, 0)
        for arm, curve in of_seed.items()
        if is_random(arm) and not (teacher_training and arm.endswith("distilled"))
    ]
    student = _by_draw(of_seed[STUDENT], modules, sweeps, teacher_training)
    found = []
    for draw, target in enumerate(modules.losses(reached[1])):
        cost = min(flops_to(flops, losses[:, draw].tolist(), target) for flops, losses in random)
        flops, losses = student
        found.append(cost / flops_to(flops, losses[:, draw].tolist(), target))
    return np.array(found)


def _by_draw(curve: Curve, modules: Modules, sweeps: bool, extra: int) -> tuple[list[int], Any]:
    return curve.flops(sweeps, extra), np.array([modules.losses(point) for point in curve.best.values()])


def mean_over_seeds(ratios: Sequence[np.ndarray]) -> np.ndarray:
    """Geometric mean of the ratios of seeds, of which every draw but the first takes some with replacement."""
    rng = np.random.default_rng(0)
    seeds, draws = np.shape(ratios)
    drawn = rng.integers(seeds, size=(seeds, draws))
    drawn[:, 0] = np.arange(seeds)
    with np.errstate(divide="ignore"):  # 0 where a student does not reach the perplexity
        logs = np.log(np.take_along_axis(np.asarray(ratios), drawn, axis=0))
    return np.exp(logs.mean(0))
