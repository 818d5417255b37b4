"""Experiment 6: a student's start and its teacher from models of two sizes, the same or different ones.

The demo's teacher, and a smaller one that was cut from it by hand, healed and distilled. From each, the same
architecture is sliced and healed; it is also initialized at random. Each start learns from the one, the other, or text
alone. Learning rates are bracketed on search text at the shorter budget with the first seed.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from hf_whittle import AutoSuperNetForCausalLM, SubnetConfig

from .lab import STARTS, Lab
from .text import LENGTH
from .training import BATCH, CODE, PAPERS, Training, flops, train
from .tuning import Tuner
from .whole_searches import BY_HAND

STUDENTS = {"large": SubnetConfig(64, (0, 2, 5), 4, 256), "small": SubnetConfig(64, (0, 1, 3), 4, 256)}
"""One architecture, as a subnet of each teacher: the first and the last layer and one between, first entries."""
RATE = 2e-3
"""Learning rate of the smaller teacher's training."""


def run(lab: Lab) -> Iterator[dict[str, Any]]:
    """Yield the results after each student."""
    small, spent = smaller(lab)
    labs = {"large": lab, "small": small}
    results: dict[str, Any] = {
        "teachers": {
            name: {"parameters": of.supernet.num_parameters(), **of.judged_teacher} for name, of in labs.items()
        },
        "small_teacher": {"tokens": lab.size.teacher_steps * BATCH * LENGTH, "flops": spent},
        "points": [],
    }
    tuners: dict[tuple[str, str | None], Tuner] = {}
    for seed in range(lab.size.repeats):
        for origin, teacher in [(a, b) for a in ("random", *labs) for b in (None, *labs)]:
            of = labs.get(origin, lab)
            name = f"{origin}, taught by {teacher or 'text alone'}"
            if origin == "random":
                start = of.random(name, lab.stock_config("64 x 3"), seed)
            else:
                start = of.healed(name, STUDENTS[origin], seed, tokens=lab.size.healing_tokens)
                results["points"].append({**of.before(start), "seed": seed})
            new = Tuner(of, lab.size.ways_steps, labs[teacher] if teacher else None)
            tuner = tuners.setdefault((origin, teacher), new)
            for steps in (lab.size.ways_steps, 4 * lab.size.ways_steps):
                kind = "random" if origin == "random" else "healed"
                results["points"].extend(
                    tuner.train(start, steps, seed, kind=kind, distillation=PAPERS if teacher else None)
                )
            yield results


def smaller(lab: Lab) -> tuple[Lab, dict[str, int]]:
    """The laboratory of the smaller teacher, which the larger one taught, and FLOPs of making it."""
    start = lab.healed("smaller teacher", BY_HAND, 0, tokens=lab.size.healing_tokens)
    training = Training(lab.size.teacher_steps, RATE, 0)

    def work() -> dict[str, Any]:
        student = start.make()
        train(student, training, lab.teacher)
        return {"weights": student.state_dict(), "flops": {**start.flops, **flops(student, training, lab.teacher)}}

    facts = lab.cache.once("teachers", {"start": start.settings, **asdict(training)}, STARTS + CODE, work)
    small = Lab(lab.size)
    small.text = lab.text
    small.supernet = AutoSuperNetForCausalLM.from_config(start.make().config, dtype="float32").to(lab.device)
    small.supernet.load_state_dict(lab.cache.weights("teachers", facts))
    return small, facts["flops"]
