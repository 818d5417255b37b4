"""Duration of a healed start: students of one architecture, healed and sliced, over training budgets.

Four of the six layers of the demo's teacher at three quarters of its width, trained with distillation and without, each
start with the learning rate that is best for it at each budget up to 262,144 tokens, above with the best at that.
Perplexity on the demo's test text. Every training is kept in `runs/`, so that an interrupted benchmark goes on.
"""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from hf_whittle.evaluation import as_input_ids, cross_entropy
from hf_whittle.files.text import write_text
from hf_whittle.fitness.probe import ProbeConfig

from .demo import healing_of, run_of, training
from .healing import SUBNETS

KEPT = Path(__file__).parent / "runs" / "healed_start.json"
PICTURE = Path(__file__).parent / "results" / "healed_start.png"
SUBNET = SUBNETS["four of six layers"]
STEPS = (8, 32, 128, 512)  # of 8 blocks of 256 tokens
RATES = {"sliced": (1e-3, 2e-3, 4e-3), "healed": (5e-4, 1e-3, 2e-3)}
LOSSES = {"distillation": {"alpha": 0.2, "beta": 0.8}, "text alone": {"alpha": 1.0, "beta": 0.0}}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    known: dict[str, float] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for steps, loss, start in product(STEPS, LOSSES, RATES):
        for rate in RATES[start] if steps <= 128 else (_best_rate(known, 128, loss, start),):
            key = f"{loss}, {start}, {steps} steps, {rate}"
            if key not in known:
                known[key] = _train(steps, rate, loss, start)
                write_text(KEPT, json.dumps(known))
                print(key, round(known[key], 2), flush=True)
    rows = {
        f"{loss}, {start}": {0: round(_before(start), 2)}
        | {
            steps * 2048: round(min(v for k, v in known.items() if k.startswith(_of(steps, loss, start))), 2)
            for steps in STEPS
        }
        for loss, start in product(LOSSES, RATES)
    }
    rates = {
        f"{loss}, {start}": {steps * 2048: _best_rate(known, steps, loss, start) for steps in STEPS}
        for loss, start in product(LOSSES, RATES)
    }
    _plot(rows)
    return {"perplexity": rows, "learning_rates": rates}


def _of(steps: int, loss: str, start: str) -> str:
    return f"{loss}, {start}, {steps} steps, "


def _best_rate(known: dict[str, float], steps: int, loss: str, start: str) -> float:
    tried = {key: value for key, value in known.items() if key.startswith(_of(steps, loss, start))}
    return float(min(tried, key=lambda key: tried[key]).rpartition(", ")[2])


def _before(start: str) -> float:
    run, healing = run_of("wide"), healing_of("wide")
    test = as_input_ids(run.blocks["test"], run.supernet.config.vocab_size)
    with run.supernet.active_subnet(SUBNET):
        model = run.supernet if start == "sliced" else healing.student(SUBNET)
        return math.exp(cross_entropy(model, test))


def _train(steps: int, rate: float, loss: str, start: str) -> float:
    config = ProbeConfig(steps=steps, batch_size=8, learning_rate=rate, **LOSSES[loss])
    return training("wide", start, config)(SUBNET)


def _plot(rows: dict[str, dict[int, float]]) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in rows.items():
        loss, start = name.split(", ")
        axes.plot(
            list(curve), list(curve.values()), marker="o", label=name,
            color="tab:blue" if start == "healed" else "tab:orange", linestyle="-" if loss == "distillation" else ":",
        )  # fmt: skip
    axes.set(xlabel="training tokens", ylabel="perplexity on test text", yscale="log")
    axes.set_xscale("symlog", linthresh=16384)
    tokens = list(next(iter(rows.values())))
    axes.set_xticks(tokens, [f"{number:,}" for number in tokens])
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(FixedLocator([20, 30, 50, 100, 150]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    measure()
