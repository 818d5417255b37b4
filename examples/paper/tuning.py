"""Learning rates: bracketed on search text for the first seed, and taken over by the others."""

from typing import Any

from .lab import Lab, Start, best_of
from .training import PAPERS, Distillation, Training

FIRST_RATES = {"random": 4e-3, "sliced": 4e-3, "healed": 2e-3}
"""Rates to begin with, by the kind of start."""


class Tuner:
    """Trains students, and remembers the best learning rate of each of them and budget.

    Args:
        lab (`Lab`): the laboratory.
        bracketed (`int`, *optional*): longest budget in steps whose rates are bracketed; a longer one takes the best
            rate of the budget before. By default, all are.
        other (`Lab`, *optional*): the laboratory whose teacher students learn from, if it is another.
    """

    def __init__(self, lab: Lab, bracketed: int | None = None, other: Lab | None = None):
        self.lab, self.bracketed, self.other = lab, bracketed, other
        self.rates: dict[tuple[str, int], float] = {}

    def train(
        self,
        start: Start,
        steps: int,
        seed: int,
        *,
        kind: str,
        distillation: Distillation | None = PAPERS,
        name: str | None = None,
    ) -> list[dict[str, Any]]:
        """Points of a student on a budget: of all rates that were tried, or of the one that is known.

        Args:
            start (`Start`): the student.
            steps (`int`): the budget.
            seed (`int`): seed of the order of the text; only the first one, 0, brackets rates.
            kind (`str`): kind of start, a key of `FIRST_RATES`.
            distillation (`Distillation`, *optional*, defaults to that of the paper): how it learns from the teacher.
            name (`str`, *optional*): name of the rates; by default that of the start. Students of one name share them.
        """
        name = name or start.name
        before = [self.rates[of, budget] for of, budget in self.rates if of == name and budget < steps]
        is_taken_over = self.bracketed is not None and steps > self.bracketed and before
        if (name, steps) not in self.rates and not is_taken_over:
            first = Training(steps, (before or [FIRST_RATES[kind]])[-1], seed, distillation)
            points = self.lab.bracketed(start, first, self.other)
            self.rates[name, steps] = best_of(points)["rate"]
            return points
        rate = self.rates.setdefault((name, steps), before[-1] if before else 0.0)
        return [self.lab.trained(start, Training(steps, rate, seed, distillation), self.other)]
