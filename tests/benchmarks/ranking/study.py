"""Parts of a ranking study. Each goes on where it was interrupted, from the rows in `results/`."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.fitness.base import Fitness
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.probe import ProbeConfig

from .candidates import candidates
from .correlation import rank
from .fitnesses import HEALING, fitnesses_of, healed_perplexity, sliced_perplexity
from .rows import Row, Rows
from .settings import Material, Setting
from .training import Training

COSTS = ("seconds", "tokens", "flops", "preparation_flops")


class Study:
    """A ranking study of one setting: its rows, and what is loaded once.

    Args:
        setting (`Setting`): the setting.
        rows (`Rows`): raw values, of other settings too.
    """

    def __init__(self, setting: Setting, rows: Rows):
        self.setting, self.rows = setting, rows
        self._material: Material | None = None
        self._healings: dict[int, HealedPerplexity] = {}
        self._trainings: dict[tuple[str, int, float], Training] = {}

    @property
    def material(self) -> Material:
        if self._material is None:
            self._material = self.setting.load()
            facts = {
                "text_sha256": self._material.text_sha256,
                "model": model_fingerprint(self._material.supernet),
                "judged on": f"{self._material.test.numel():,} tokens",
            }
            self.rows.check_facts(self.setting.name, facts)
        return self._material

    def own_rows(self) -> list[Row]:
        """Rows of this setting, in the order they were added."""
        return [row for row in self.rows.read().values() if row.group.startswith(f"{self.setting.name}, ")]

    # Subnets

    def choose(self) -> None:
        """Choose subnets by the perplexity of the slice."""
        self._choose(sliced_perplexity(self.setting, self.material, self.material.search))

    def choose_healed(self) -> None:
        """Choose as many again by healed perplexity."""
        tokens = max(self.setting.healing_tokens)
        self._choose(healed_perplexity(self.setting, self.material, tokens, self.material.search))

    def _choose(self, fitness: Fitness) -> None:
        if any(row.origin.endswith(f" by {fitness.name}") for row in self.own_rows()):
            return
        known = self.rows.read().keys()
        for row in candidates(self.setting, self.material, fitness):
            if (row.group, row.subnet.digest) not in known:
                self.rows.add_subnet(row)
        print(f"{self.setting.name}: {len(self.own_rows())} subnets", flush=True)

    # Truth

    def train(self, starts: Sequence[str] = ()) -> None:
        """Measure perplexity after each budget of distillation; the subnets of all groups in turn."""
        rates = {budget: self.tuned_rate(budget) for budget in self.setting.budgets}
        for row in self.own_rows():
            for start in starts or self.setting.starts:
                for budget, rate in rates.items():
                    self._trained(row, start, budget, rate, truth_name(start, budget))

    def tuned_rate(self, budget: int) -> float:
        """The learning rate that is best for the first subnet on a budget from a slice."""
        rates = self.setting.rates[self.setting.budgets.index(budget)]
        if len(rates) == 1:
            return rates[0]
        first = self.own_rows()[0]
        ends = {rate: self._trained(first, "sliced", budget, rate, tuning_name(budget, rate)) for rate in rates}
        return min(ends, key=lambda rate: ends[rate])

    def _trained(self, row: Row, start: str, budget: int, rate: float, name: str) -> float:
        tuning = tuning_name(budget, rate)
        if name not in row.measured and start == "sliced" and tuning in row.measured:
            self.rows.add_measurement(row, name, **row.measured[tuning])
        if name not in row.measured:
            self._measure(row, name, self._training(start, budget, rate), learning_rate=rate)
        return row.measured[name]["value"]

    def _training(self, start: str, budget: int, rate: float) -> Training:
        key = (start, budget, rate)
        if key not in self._trainings:
            setting, material = self.setting, self.material
            steps = budget // (setting.batch_size * material.train.shape[1])
            self._trainings[key] = Training(
                material.supernet,
                material.train,
                material.test,
                ProbeConfig(steps=steps, batch_size=setting.batch_size, learning_rate=rate),
                healing=self.healing(max(setting.healing_tokens)) if start == "healed" else None,
                autocast=setting.autocast,
            )
        return self._trainings[key]

    # Fitnesses

    def healing(self, tokens: int) -> HealedPerplexity:
        if tokens not in self._healings:
            self._healings[tokens] = healed_perplexity(self.setting, self.material, tokens, self.material.fitness)
        return self._healings[tokens]

    def evaluate(self, names: Sequence[str] = ()) -> None:
        """Evaluate every fitness, or those whose names begin with one of `names`, of all subnets."""
        for name, make in fitnesses_of(
            self.setting, self.material, self.tuned_rate(self.setting.budgets[0]), self.healing
        ).items():
            missing = [row for row in self.own_rows() if name not in row.measured]
            if missing and (not names or name.startswith(tuple(names))):
                fitness = make()
                for row in missing:
                    self._measure(row, name, fitness)

    def _measure(self, row: Row, name: str, fitness: Fitness, **facts: Any) -> None:
        started = time.perf_counter()
        value = fitness(row.subnet)
        seconds = round(time.perf_counter() - started, 2)
        facts = {"seconds": seconds, "tokens": fitness.tokens(), "flops": fitness.flops(row.subnet), **facts}
        facts["preparation_flops"] = fitness.preparation["flops"]
        self.rows.add_measurement(row, name, value, **facts)
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {row.group}: {row.space}, {row.origin}: {name}: {value:.5g}, {seconds} s", flush=True)


def truth_name(start: str, budget: int) -> str:
    """Name of a training in the rows."""
    start = f"{start} ({HEALING})" if start == "healed" else start
    return f"{start}, {budget:,} tokens of distillation"


def tuning_name(budget: int, rate: float) -> str:
    """Name of a training with one of the learning rates to choose from."""
    return f"{truth_name('sliced', budget)}, rate {rate:g}"


def is_truth(name: str) -> bool:
    return name.endswith("tokens of distillation")


def is_fitness(name: str) -> bool:
    return "of distillation" not in name


def ranks(rows: Sequence[Row], reference: str) -> dict[str, Any]:
    """Tau of the fitnesses that all trained subnets have, for each start and budget."""
    found: dict[str, Any] = {}
    for truth in sorted({name for row in rows for name in row.measured if is_truth(name)}):
        trained = [row for row in rows if truth in row.measured and any(map(is_fitness, row.measured))]
        fitnesses = [set(filter(is_fitness, row.measured)) for row in trained]
        groups: dict[str, list[dict[str, float]]] = {}
        for row in trained:
            names = {truth, *set.intersection(*fitnesses)}
            groups.setdefault(row.group, []).append({name: row.measured[name]["value"] for name in names})
        found[truth] = rank(groups, truth, reference)
    return found


def costs(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean seconds, tokens and FLOPs of an evaluation or a training, and FLOPs of its preparation, by name."""
    names = dict.fromkeys(name for row in rows for name in row.measured)
    return {name: {"evaluations": len(of_name := list(_measured(rows, name)))} | _means(of_name) for name in names}


def _measured(rows: Sequence[Row], name: str) -> Iterator[dict[str, Any]]:
    yield from (row.measured[name] for row in rows if name in row.measured)


def _means(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {fact: round(statistics.mean(one[fact] for one in measured), 2) for fact in COSTS}
