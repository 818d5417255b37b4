"""The laboratory of all experiments: text, teacher, cache, searches, students before training, and their trainings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import GPTNeoXConfig, PreTrainedConfig, PreTrainedModel, set_seed

from hf_whittle import (
    AutoSuperNetForCausalLM,
    HealingConfig,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    score_importance,
    search_subnets,
)
from hf_whittle.cost import flops_per_token
from hf_whittle.demo import TEACHER
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.fitness.base import Fitness
from hf_whittle.healing.cost import healing_flops
from hf_whittle.importance.sorting import Order
from hf_whittle.run.trainers import random_student
from hf_whittle.search.algorithm import SearchConfig

from .cache import HERE, RUNS, Cache
from .sizes import Size
from .text import LENGTH, Text, load
from .training import CODE, Teacher, Training, flops, judge, train

BIN = ParameterBin(800_000, 880_000)
"""The demo's bin."""
HEALING_TOKENS = 24_576
FARTHEST = 32
"""Largest factor between the first learning rate that is tried and another."""
SEARCHING = ("search", "space", "cost", "subnet", "fitness", "healing", "models", "architectures", "paper.text")
HEALING = ("healing", "extraction", "models", "architectures", "paper.text")
STARTS = (*HEALING, "importance", "paper.lab")


@dataclass(frozen=True)
class Start:
    """A student before training.

    Args:
        name (`str`): its name in the results.
        make (`Callable`): makes the student.
        settings (`dict`): what determines it.
        flops (`dict[str, int]`): FLOPs of finding and making it.
    """

    name: str
    make: Callable[[], PreTrainedModel]
    settings: dict[str, Any]
    flops: dict[str, int]


class Lab:
    """What the experiments of one size share.

    Args:
        size (`Size`): the size.
    """

    def __init__(self, size: Size):
        self.size = size
        self.device = torch.device(size.device)

    @cached_property
    def text(self) -> Text:
        return load(self.size.test_blocks, self.size.rate_blocks)

    @cached_property
    def supernet(self) -> Any:
        return AutoSuperNetForCausalLM.from_pretrained(TEACHER, dtype="float32").to(self.device)

    @cached_property
    def teacher(self) -> Teacher:
        keeps = self.device.type == "cpu" and self.size.name != "tiny"
        key = self.cache.key("teacher", {}, CODE)
        return Teacher(self.supernet, self.text, RUNS / "teacher" / key if keeps else None)

    @cached_property
    def cache(self) -> Cache:
        inputs = {"text": self.text.identity(), "teacher": model_fingerprint(self.supernet), "device": self.size.device}
        return Cache(RUNS, inputs)

    @property
    def results(self) -> Any:
        """Folder of results: that of the repository for whole sizes."""
        return (RUNS if self.size.name == "tiny" else HERE) / "results"

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.from_config(self.supernet.config, granularity="coarse", layer_wise=True)

    # Searches

    def found(
        self,
        config: SearchConfig,
        make: Callable[[], Fitness],
        settings: dict[str, Any],
        space: Any = None,
        bin: Any = BIN,
    ) -> dict[str, Any]:
        """Best subnet of a search, its cost, and the best fitness after each evaluation.

        Args:
            config (`SearchConfig`): the search.
            make (`Callable`): makes its fitness.
            settings (`dict`): what determines the fitness, and the space if it is not coarse and layer-wise.
            space (`SearchSpace`, *optional*): the space.
            bin (`ParameterBin`, *optional*): the bin.
        """

        def work() -> dict[str, Any]:
            result = search_subnets(
                self.supernet, space or self.space, bin=bin, config=config, fitness=make(), progress=False
            )
            return {
                "subnet": result.best.to_dict(),
                "fitness": result.best_evaluation.fitness,
                "evaluations": len(result.evaluations),
                "tokens": result.tokens,
                "flops": result.flops,
                "best_so_far": [round(value, 3) for value in result.best_so_far()],
            }

        whole = {"search": {"name": config.name, **asdict(config)}, "bin": bin.to_dict(), **settings}
        return self.cache.once("searches", whole, SEARCHING, work)

    @property
    def judged_teacher(self) -> dict[str, Any]:
        """The teacher as students are judged."""
        return self.cache.once("judged", {"model": "teacher"}, CODE, lambda: judge(self.supernet, self.text))

    # Students before training

    def sliced(self, name: str, subnet: SubnetConfig, cost: dict[str, int] | None = None) -> Start:
        """The slice of a subnet, which cost something to find."""
        settings = {"slice of": subnet.to_dict()}
        return Start(name, lambda: extract_subnet(self.supernet, subnet), settings, cost or {})

    def healed(
        self,
        name: str,
        subnet: SubnetConfig,
        seed: int,
        cost: dict[str, int] | None = None,
        tokens: int = HEALING_TOKENS,
        config: HealingConfig | None = None,
    ) -> Start:
        """The healed student of a subnet, on calibration text that the seed draws."""
        config = config or HealingConfig()
        settings = {"healed": subnet.to_dict(), "seed": seed, "tokens": tokens, "config": asdict(config)}

        def work() -> dict[str, Any]:
            blocks = self.text.calibrating(tokens, seed)
            student = extract_subnet(self.supernet, subnet, heal=config, calibration_dataset=blocks, progress=False)
            report = student.healing.to_dict()
            spent = healing_flops(self.supernet.full_config, subnet, report, LENGTH)
            return {"weights": student.state_dict(), "healing_flops": spent, "is_healed": report["is_healed"]}

        facts = self.cache.once("healed", settings, HEALING, work)

        def make() -> PreTrainedModel:
            student = extract_subnet(self.supernet, subnet)
            student.load_state_dict(self.cache.weights("healed", facts))
            return student

        return Start(name, make, settings, {**(cost or {}), "healing": facts["healing_flops"]})

    def random(self, name: str, config: PreTrainedConfig, seed: int) -> Start:
        """A student of random weights."""

        def make() -> PreTrainedModel:
            set_seed(seed)
            return random_student(config).to(self.device)

        return Start(name, make, {"random": config.to_diff_dict(), "seed": seed}, {})

    def stock_config(self, shape: str) -> GPTNeoXConfig:
        """Configuration of a stock model in the bin, from its channels and layers (`96 x 4`)."""
        channels, layers = map(int, shape.split(" x "))
        values = self.supernet.full_config.to_dict()
        heads = channels // (values["hidden_size"] // values["num_attention_heads"])
        values |= {"hidden_size": channels, "num_hidden_layers": layers, "num_attention_heads": heads}
        values["intermediate_size"] = channels * (3 if shape == "112 x 3" else 4)
        values.pop("architectures", None)
        return GPTNeoXConfig.from_dict(values)

    def sorted_subnet(self, subnet: SubnetConfig, seed: int) -> tuple[SubnetConfig, dict[str, int]]:
        """The most important entries and layers, as many as a subnet of prefixes has, and FLOPs of scoring them."""
        blocks = self.text.calibrating(4096, seed)
        scores = score_importance(self.supernet, blocks, progress=False)
        layers = sorted(scores.layers.argsort()[::-1][: len(subnet.layers)].tolist())
        spent = blocks.numel() * flops_per_token(self.supernet.full_config, sequence_length=LENGTH)
        return Order.by(scores).original(replace(subnet, num_hidden_layers=tuple(layers))), {"importance": spent}

    # Trainings

    def before(self, start: Start) -> dict[str, Any]:
        """A student as it is before training."""
        facts = self.cache.once("before", start.settings, STARTS + CODE, lambda: judge(start.make(), self.text))
        return self._point(start, facts, tokens=0, rate=None, seed=None, distilled=False, flops=start.flops)

    def trained(
        self, start: Start, training: Training, other: "Lab | None" = None, further: Any = None
    ) -> dict[str, Any]:
        """A student after a training, and FLOPs of all that it took.

        Args:
            start (`Start`): the student.
            training (`Training`): the training.
            other (`Lab`, *optional*): the laboratory whose teacher is learned from, if it is another.
            further (`Callable`, *optional*): a further judgement of the trained student; returns `tasks`, and has
                `settings` and `code`, which determine it.
        """
        lab = other or self

        def work() -> dict[str, Any]:
            student = start.make()
            train(student, training, lab.teacher)
            more = {} if further is None else further(student)
            return {**judge(student, self.text), **more, "flops": flops(student, training, lab.teacher)}

        settings, code = {"start": start.settings, **asdict(training)}, STARTS + CODE
        if lab is not self:
            settings["teacher"] = lab.cache.inputs["teacher"]
        if further is not None:
            settings, code = {**settings, "further": further.settings}, code + further.code
        facts = self.cache.once("trained", settings, code, work)
        own = {"tokens": training.tokens, "rate": training.rate, "seed": training.seed}
        own["distilled"] = training.distillation is not None
        return self._point(start, facts, **own, flops={**start.flops, **facts["flops"]})

    def _point(self, start: Start, facts: dict[str, Any], **own: Any) -> dict[str, Any]:
        judged = {name: facts[name] for name in ("search", "test", "tasks", "made", "key") if name in facts}
        return {"arm": start.name, **own, **judged}

    def bracketed(self, start: Start, training: Training, other: "Lab | None" = None) -> list[dict[str, Any]]:
        """Trainings with rates a factor of 2 apart, until the best on the search text has a worse one on each side.

        The search begins with the rate of `training`, and ends, too, at a factor of 32 from it, where training does
        not help.
        """
        points: dict[float, dict[str, Any]] = {}

        def at(rate: float) -> float:
            if rate not in points:
                points[rate] = self.trained(start, replace(training, rate=rate), other)
            return points[rate]["search"]

        best = first = training.rate
        while True:
            others = [rate for rate in (best / 2, best * 2) if first / FARTHEST <= rate <= first * FARTHEST]
            better = min([best, *others], key=at)
            if better == best:
                return list(points.values())
            best = better


def best_of(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The point that is best on the search text."""
    return min(points, key=lambda point: point["search"])
