"""Experiment 6: a student's start and its teacher from models of two sizes, the same or different ones.

The demo's teacher, and a smaller one that was cut from it by hand, healed and distilled. From each, the same
architecture is sliced and healed; it is also initialized at random. Each start learns from the one, the other, or text
alone. Learning rates are bracketed on search text at the shorter budget with the first seed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_whittle import SubnetConfig
from hf_whittle.demo import TEACHER

from .cache import RUNS
from .lab import STARTS, Lab
from .training import CODE, PAPERS, Training, flops, judge, train
from .tuning import Tuner
from .whole_searches import BY_HAND

STUDENTS = {"large": SubnetConfig(64, (0, 2, 5), 4, 256), "small": SubnetConfig(64, (0, 1, 3), 4, 256)}
"""One architecture, as a subnet of each teacher: the first and the last layer and one between, first entries."""
RATE = 2e-3
"""Learning rate of the smaller teacher's training."""


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each student."""
    labs = {"large": lab, "small": smaller(lab)}
    results: dict[str, Any] = {
        "teachers": {
            name: {"parameters": of.supernet.num_parameters(), **judge(of.supernet, lab.text)}
            for name, of in labs.items()
        },
        "points": [],
    }
    tuners: dict[tuple[str, str | None], Tuner] = {}
    for seed in range(lab.size.repeats):
        for origin, teacher in [(a, b) for a in ("random", *labs) for b in (None, *labs)]:
            of = labs.get(origin, lab)
            name = f"{origin}, taught by {teacher or 'text'}"
            if origin == "random":
                start = of.random(name, lab.stock_config("64 x 3"), seed)
            else:
                start = of.healed(name, STUDENTS[origin], seed, tokens=lab.size.healing_tokens)
            other = labs[teacher] if teacher else of
            new = Tuner(of, lab.size.ways_steps, None if other is of else other)
            tuner = tuners.setdefault((origin, teacher), new)
            known = {"origin": origin, "teacher": teacher}
            if origin != "random":
                results["points"].append({**of.before(start), **known, "seed": seed})
            for steps in (lab.size.ways_steps, 4 * lab.size.ways_steps):
                kind = "random" if origin == "random" else "healed"
                points = tuner.train(start, steps, seed, kind=kind, distillation=PAPERS if teacher else None)
                results["points"].extend({**point, **known} for point in points)
            yield results


def smaller(lab: Lab) -> Lab:
    """The laboratory of the smaller teacher, which the larger one taught."""
    start = lab.healed("smaller teacher", BY_HAND, 0, tokens=lab.size.healing_tokens)
    training = Training(lab.size.teacher_steps, RATE, 0)

    def work() -> dict[str, Any]:
        student = start.make()
        train(student, training, lab.teacher)
        return {"weights": student.state_dict(), "flops": {**start.flops, **flops(student, training, lab.teacher)}}

    facts = lab.cache.once("teachers", {"of": start.settings, "steps": training.steps}, STARTS + CODE, work)
    folder: Path = RUNS / "teachers" / facts["key"]
    if not folder.is_dir():
        student = start.make()
        student.load_state_dict(lab.cache.weights("teachers", facts))
        student.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TEACHER).save_pretrained(folder)
    small = Lab(lab.size, folder)
    small.text = lab.text
    return small
