"""Recovery from a healed start: all weights trained, adapters alone, or biases and norms alone.

Students of the demo's teacher, sliced and healed, trained by distillation for two budgets, each with the better of two
learning rates. Perplexity on the demo's test text. Every training is kept in `runs/`, so that an interrupted benchmark
goes on.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from hf_whittle import SubnetConfig
from hf_whittle.distillation.adapters import layer_matrices
from hf_whittle.files.text import write_text
from hf_whittle.fitness.probe import Probe, ProbeConfig

from .demo import training
from .healing import SUBNETS

KEPT = Path(__file__).parent / "runs" / "healed_recovery.json"
CUTS = ("four of six layers",)  # or "deep cut", which has not been run
TRAINED = {
    "all weights": (2e-3, 4e-3),
    "adapters of rank 16": (8e-3, 1.6e-2),
    "biases and norms": (1.6e-2, 6.4e-2),
}
STEPS = (32, 128)  # of 8 blocks of 256 tokens
RANK = 16


class PartialTraining(Probe):
    """A probe that trains only a part of the student."""

    trained = "all weights"

    def student(self, subnet: SubnetConfig) -> Any:
        student: Any = super().student(subnet)
        if self.trained == "adapters of rank 16":
            torch.manual_seed(0)
            adapters = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layer_matrices(student.config))
            return inject_adapter_in_model(adapters, student)
        if self.trained == "biases and norms":
            for parameter in student.parameters():
                parameter.requires_grad_(parameter.ndim < 2)
        return student


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    known: dict[str, float] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    rows: dict[str, Any] = {}
    for name, trained, start, steps in product(CUTS, TRAINED, ("sliced", "healed"), STEPS):
        ends = {}
        for rate in TRAINED[trained]:
            key = f"{name}, {trained}, {start}, {steps} steps, {rate}"
            if key not in known:
                known[key] = _train(name, trained, start, steps, rate)
                write_text(KEPT, json.dumps(known))
                print(key, round(known[key], 2), flush=True)
            ends[rate] = known[key]
        best = min(ends, key=lambda rate: ends[rate])
        row = rows.setdefault(name, {}).setdefault(f"{trained}, {start}", {})
        row[steps * 2048] = {"perplexity": round(ends[best], 2), "learning_rate": best}
    return rows


def _train(name: str, trained: str, start: str, steps: int, rate: float) -> float:
    config = ProbeConfig(steps=steps, batch_size=8, learning_rate=rate)
    partial: Any = training("wide", start, config, PartialTraining)
    partial.trained = trained
    return partial(SUBNETS[name])
