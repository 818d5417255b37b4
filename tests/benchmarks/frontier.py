"""Does healing pay? Perplexity over FLOPs and seconds of slices and healed students, each then distilled.

Subnets of SmolLM2-135M in two bins, the first that the ranking study chose in each; and of the demo's teacher in two,
which an additive search by perplexity finds. Each is taken as a slice, and healed on several numbers of tokens; then it
is distilled on several budgets, each with a schedule of its own and the best of some learning rates (for the real
model, the best on the smallest budget). The committed results hold starts of an older healing as well, which made two
attempts and kept the better. Costs are those of healing, of the teacher's hidden states and of training, without
judging on the test text; seconds are those of the processor. Teachers, text and trainings are those of the ranking
studies; the real one says what its environment variables are, and is left out without them. There the forward passes of
healing run in bfloat16 too. Every point is kept in `runs/`, so that an interrupted benchmark goes on.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_whittle import (
    AdditiveSearchConfig,
    HealingConfig,
    Perplexity,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    search_subnets,
)
from hf_whittle.cost import training_flops_per_token
from hf_whittle.evaluation import cross_entropy, perplexity
from hf_whittle.files.text import write_json
from hf_whittle.fitness.probe import ProbeConfig
from hf_whittle.healing.cost import healing_flops
from hf_whittle.plots import finish, new_axes

from .ranking.candidates import parameter_bin
from .ranking.real import MODEL, REAL
from .ranking.rows import Row, Rows
from .ranking.settings import RESULTS, Material, Setting
from .ranking.toy import setting as toy_setting
from .ranking.training import Training, bfloat16

Starts = dict[str, int | None]
"""Calibration tokens of healing by the name of a start; `None` for slices."""
STARTS: Starts = {"sliced": None} | {f"healed on {n:,} tokens": n for n in (4_096, 16_384)}
BUDGETS = (8_192, 32_768)
"""Tokens of distillation."""
DRAWN = {
    "sliced": ("as sliced, then distilled", "#6b7280", (7, 5)),
    "healed on 16,384 tokens": ("healed on 16,384 tokens, then distilled", "#2f6fde", (-58, -15)),
}
"""Starts that are drawn, with their labels, colors, and places of the text at a point."""
PICTURE = RESULTS / "frontier.png"
RATES = (3e-4, 1e-4)
"""Learning rates that the first budget chooses from, for each student and start; the others take its choice."""
TOY_STARTS: Starts = {"sliced": None} | {f"healed on {n:,} tokens": n for n in (8_192, 24_576, 98_304)}
TOY_BUDGETS, TOY_RATES = (16_384, 65_536, 262_144), (2e-3, 5e-4)
TOY_BINS = ((0.5, 0.525), (0.3, 0.315))


@dataclass
class Start:
    """A student before distillation, and its cost: healing is judged as it goes, so that this is part of it."""

    weights: dict[str, torch.Tensor]
    perplexity: float
    facts: dict[str, Any]


class From(Training):
    """The trainings of a start, seconds of the last one, and those of the teacher's hidden states before them all."""

    start: Start
    seconds: float
    teacher_seconds: float

    @classmethod
    def of(cls, material: Material, budget: int, rate: float, setting: Setting = REAL) -> "From":
        steps = budget // (setting.batch_size * material.train.shape[1])
        config = ProbeConfig(steps=steps, batch_size=setting.batch_size, learning_rate=rate)
        started = time.process_time()
        training = cls(material.supernet, material.train, material.test, config, autocast=setting.autocast)
        training.teacher_seconds = time.process_time() - started
        return training

    def cost(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Seconds and FLOPs of the start, the teacher and the last training, which was of this subnet."""
        length = self.input_ids.shape[1]
        trained = self._steps(1.0) * self.config.batch_size * length
        trained *= training_flops_per_token(self.supernet.full_config, subnet, sequence_length=length)
        return {
            "seconds": round(self.start.facts["seconds"] + self.teacher_seconds + self.seconds, 1),
            "flops": self.start.facts["flops"] + self.preparation["flops"] + trained,
        }

    def _train(self, student: Any, steps: int) -> None:
        started = time.process_time()
        super()._train(student, steps)
        self.seconds = time.process_time() - started

    def student(self, subnet: SubnetConfig) -> Any:
        student = extract_subnet(self.supernet, subnet, dtype=torch.float32)
        student.load_state_dict(self.start.weights)
        return student


def start_of(
    material: Material, subnet: SubnetConfig, calibration_tokens: int | None, setting: Setting = REAL
) -> Start:
    started = time.process_time()
    facts: dict[str, Any] = {"seconds": 0.0, "flops": 0}
    if calibration_tokens is None:
        student = extract_subnet(material.supernet, subnet, dtype=torch.float32)
    else:
        length = material.calibration.shape[1]
        config = HealingConfig(bf16=setting.autocast, batch_size=setting.eval_batch_size)
        blocks = material.calibration[: calibration_tokens // length]
        student = extract_subnet(material.supernet, subnet, heal=config, calibration_dataset=blocks, progress=False)
        report = student.healing.to_dict()
        flops = healing_flops(material.supernet.full_config, subnet, report, length)
        seconds = round(time.process_time() - started, 1)
        facts = {"seconds": seconds, "flops": flops, "is_healed": student.healing.is_healed, "basis": report["basis"]}
    with bfloat16(setting.autocast):
        value = perplexity(cross_entropy(student, material.test, setting.eval_batch_size))
    return Start({name: tensor.clone() for name, tensor in student.state_dict().items()}, value, facts)


def subnets() -> list[Row]:
    """The first subnet of each group of the ranking study."""
    rows = list(Rows(RESULTS / "ranking_real_rows.jsonl").read().values())
    return list({row.group: row for row in reversed(rows)}.values())[::-1]


class Points:
    """Perplexities of students that start and are distilled in several ways, kept in a file of `runs/`.

    Args:
        name (`str`): name of the file.
        material (`Material`): teacher and text.
        starts (`dict`): calibration tokens of healing, by name; `None` for slices.
        budgets (`tuple[int, ...]`): tokens of distillation.
        rates (`tuple[float, ...]`): learning rates that the first budget chooses from; the others take its choice.
        setting (`Setting`): sizes of batches, and whether products run in bfloat16.
        try_all (`bool`): whether each budget tries all rates instead.
    """

    def __init__(
        self,
        name: str,
        material: Material,
        starts: dict[str, Any],
        budgets: tuple[int, ...],
        rates: tuple[float, ...] = RATES,
        setting: Setting = REAL,
        try_all: bool = False,
    ):
        self.path = RESULTS.parent / "runs" / f"{name}.json"
        self.known: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else []
        self.material, self.starts, self.budgets, self.rates = material, starts, budgets, rates
        self.setting, self.try_all = setting, try_all
        self._trainings: dict[tuple[int, float], From] = {}

    def measure(self, subnets: dict[str, SubnetConfig]) -> None:
        """Add the points of named subnets that are not known yet."""
        for start, calibration_tokens in self.starts.items():
            for group, subnet in subnets.items():
                self._measure(group, subnet, start, calibration_tokens)

    def of(self, subnets: dict[str, SubnetConfig]) -> list[dict[str, Any]]:
        """The known points of named subnets."""
        digests = {group: subnet.digest for group, subnet in subnets.items()}
        return [point for point in self.known if digests.get(point["group"]) == point["digest"]]

    def _measure(self, group: str, subnet: SubnetConfig, name: str, calibration_tokens: int | None) -> None:
        about = {"group": group, "digest": subnet.digest, "start": name}
        known = {(p["tokens"], p["rate"]): p["perplexity"] for p in self.of({group: subnet}) if p["start"] == name}
        in_all = len(self.rates) * len(self.budgets) if self.try_all else len(self.rates) + len(self.budgets) - 1
        if len(known) > in_all:
            return
        start = start_of(self.material, subnet, calibration_tokens, self.setting)
        if (0, 0.0) not in known:
            self._add(**about, tokens=0, rate=0.0, perplexity=start.perplexity, **start.facts)
        rates = self.rates
        for budget in self.budgets:
            found = {
                rate: known.get((budget, rate)) or self._trained(about, subnet, start, budget, rate) for rate in rates
            }
            if not self.try_all:
                rates = (min(found, key=lambda rate: found[rate]),)

    def _trained(self, about: dict[str, Any], subnet: SubnetConfig, start: Start, budget: int, rate: float) -> float:
        training = self._training(budget, rate)
        training.start = start
        value = training(subnet)
        self._add(**about, tokens=budget, rate=rate, perplexity=value, **training.cost(subnet))
        return value

    def _training(self, budget: int, rate: float) -> From:
        if (budget, rate) not in self._trainings:
            self._trainings[budget, rate] = From.of(self.material, budget, rate, self.setting)
        return self._trainings[budget, rate]

    def _add(self, **point: Any) -> None:
        self.known.append(point)
        write_json(self.path, self.known)
        print(time.strftime("%H:%M:%S"), point, flush=True)


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    toy = toy_setting("wide")
    results = {"the demo's teacher": _frontier_of(toy, "frontier_toy", _found_in, TOY_STARTS, TOY_BUDGETS, TOY_RATES)}
    if MODEL in os.environ:
        real = _frontier_of(REAL, "frontier", lambda _: {row.group: row.subnet for row in subnets()}, STARTS)
        draw(real["points"], real["settings"]["teacher_perplexity"])
        results[REAL.name] = real
    return results


def _frontier_of(
    setting: Setting,
    name: str,
    choose: Callable[[Material], dict[str, SubnetConfig]],
    starts: Starts,
    budgets: tuple[int, ...] = BUDGETS,
    rates: tuple[float, ...] = RATES,
) -> dict[str, Any]:
    material = setting.load()
    points = Points(name, material, starts, budgets, rates, setting, try_all=setting is not REAL)
    chosen = choose(material)
    points.measure(chosen)
    found = points.of(chosen)
    return {"settings": described(material, starts, setting), "points": found, "frontier": frontiers(found)}


def _found_in(material: Material) -> dict[str, SubnetConfig]:
    """The subnet of the toy that an additive search by perplexity finds in each bin."""
    space = SearchSpace.from_config(material.supernet.config, granularity="coarse", layer_wise=True)
    bins = {f"the demo's teacher, {100 * low:g}-{100 * high:g}%": (low, high) for low, high in TOY_BINS}
    found = {}
    for group, bin in bins.items():
        result = search_subnets(
            material.supernet,
            space,
            bin=parameter_bin(material, bin),
            fitness=Perplexity(material.supernet, material.search),
            config=AdditiveSearchConfig(generations=10),
            progress=False,
        )
        found[group] = result.best
    return found


def described(material: Material, starts: dict[str, Any], setting: Setting = REAL) -> dict[str, Any]:
    with bfloat16(setting.autocast):
        teacher = perplexity(cross_entropy(material.supernet, material.test, setting.eval_batch_size))
    return {
        "model": setting.name,
        "teacher_perplexity": teacher,
        "text_sha256": material.text_sha256,
        "judged_on_tokens": material.test.numel(),
        "calibration_tokens": starts,
        "default_healing": asdict(HealingConfig()),
    }


def draw(points: list[dict[str, Any]], teacher: float) -> None:
    """Draw perplexity over FLOPs of the smaller student, as a slice and healed, into a PNG file."""
    figure, axes = new_axes()
    group = points[0]["group"]
    for start, (label, color, place) in DRAWN.items():
        of_start = [point for point in points if (point["group"], point["start"]) == (group, start)]
        worst_first = sorted(of_start, key=lambda point: -point["perplexity"])
        best = sorted({point["tokens"]: point for point in worst_first}.values(), key=lambda point: point["tokens"])
        xs, ys = [point["flops"] / 1e12 for point in best], [point["perplexity"] for point in best]
        axes.plot(xs, ys, color=color, label=label, linewidth=1.8, marker="o", markersize=5)
        for x, y, point in zip(xs, ys, best, strict=True):
            trained = f"{point['tokens']:,} tokens" if point["tokens"] else "no training"
            axes.annotate(
                f"{y:.1f}, {trained}", (x, y), xytext=place, textcoords="offset points", fontsize="small", color=color
            )
    axes.axhline(teacher, color="#9aa5b1", linestyle=":", label=f"the teacher, {REAL.name}: {teacher:.1f}")
    axes.set(xlabel="TFLOPs of healing, teacher and training", ylabel="perplexity on held-out text")
    axes.set(title="A student with {1} of {0}'s parameters".format(*group.split(", ")), xlim=(-1.5, 66), ylim=(15, 80))
    finish(figure, axes, PICTURE)


def frontiers(points: list[dict[str, Any]]) -> dict[str, Any]:
    """For each group and cost, the points that no other is both cheaper and better than, cheapest first."""
    found: dict[str, Any] = {}
    for group in dict.fromkeys(point["group"] for point in points):
        of_group = [point for point in points if point["group"] == group]
        for cost in ("flops", "seconds"):
            best, lowest = [], float("inf")
            for point in sorted(of_group, key=lambda point: (point[cost], point["perplexity"])):
                if point["perplexity"] < lowest:
                    lowest = point["perplexity"]
                    best.append(f"{point['start']}, {point['tokens']:,} tokens: {lowest:.2f}, {point[cost]:.4g} {cost}")
            found.setdefault(group, {})[cost] = best
    return found
