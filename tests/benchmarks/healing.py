"""Parts of healing: perplexity that each restores in students of the demo's teacher before any training.

Three subnets: what the paper's search finds in the demo's bin, four of six layers at three quarters of the width, and a
deep cut of three layers at half of it. Perplexity on the demo's test text; calibration text is training text.
"""

import math
from typing import Any
from unittest.mock import patch

import torch

from hf_whittle import HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.evaluation import as_input_ids, cross_entropy
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.healing import student_weights
from hf_whittle.healing.regression import Fit

from .demo import run_of

TOKENS = 24_576
SUBNETS = {
    "least perplexity": SubnetConfig(116, 6, (8, 5, 7, 8, 7, 1), (418, 2, 2, 2, 132, 8)),
    "four of six layers": SubnetConfig(96, (0, 1, 3, 5), 6, 384),
    "deep cut": SubnetConfig(64, (0, 2, 4), 4, 256),
}
PARTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "kept channels for a basis": {"basis": "channels"},
    "basis alone": {"inputs": False, "outputs": False, "head": False},
    "basis and inputs": {"outputs": False, "head": False},
    "basis and outputs": {"inputs": False, "head": False},
    "kept channels, outputs and head": {"basis": "channels", "inputs": False},
    "kept channels, outputs": {"basis": "channels", "inputs": False, "head": False},
}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    run = run_of("wide")
    test = as_input_ids(run.blocks["test"], run.supernet.config.vocab_size)
    train = run.blocks["train"].shuffle(seed=0)

    def after(subnet: SubnetConfig, settings: HealingConfig | bool, tokens: int = TOKENS) -> float:
        blocks = train.select(range(tokens // 256)) if settings else None
        student = extract_subnet(run.supernet, subnet, heal=settings, calibration_dataset=blocks, progress=False)
        return round(math.exp(cross_entropy(student, test)), 2)

    gathered = HealedPerplexity(run.supernet, run.blocks["search"], train.select(range(TOKENS // 256)))
    rows: dict[str, Any] = {}
    for name, subnet in SUBNETS.items():
        row: dict[str, Any] = {"sliced": after(subnet, False)}
        for part, values in PARTS.items():
            row[part] = after(subnet, HealingConfig(**values))
        with patch.object(student_weights.Moments, "fit", _bias_alone):
            row["kept channels, biases of outputs alone"] = after(
                subnet, HealingConfig(basis="channels", inputs=False, head=False)
            )
        for tokens in (2_560, 8_192, 98_304):
            row[f"all parts, {tokens:,} tokens"] = after(subnet, HealingConfig(), tokens)
        row["within a search"] = round(math.exp(cross_entropy(gathered.student(subnet), test)), 2)
        rows[name] = row
        print(name, row, flush=True)
    return {"tokens": TOKENS, "teacher": round(math.exp(cross_entropy(run.supernet, test)), 2), "perplexity": rows}


def _bias_alone(moments: Any, start: torch.Tensor, ridges: Any) -> Fit:
    """The start, its constant set so that the mean error is 0: bias compensation."""
    gram, cross = moments._fitted.gram, moments._fitted.cross
    weight = start.double().clone()
    weight[:, -1] += (cross[:, -1] - weight @ gram[:, -1]) / gram[-1, -1]
    return Fit(weight, 0.0, 0.0, 0.0)
