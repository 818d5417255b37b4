"""Stores of teacher targets: bytes per token, reading against running the teacher, and bias of the student's gradient.

The bias is the relative error, in norm, of the mean gradient with respect to the student's logits against the gradient
of the whole KL; the teacher is the demo's, the student a subnet of it, on held-out blocks of its text.
"""

import tempfile
from functools import partial
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle import GPTNeoXSuperNetForCausalLM, ParameterBin, SearchSpace, extract_subnet
from hf_whittle.distillation.store.encodings import Encoding, Samples, TopK
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.loss.divergences import LossWeights
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, SparseTargets, Targets
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

from .measuring import time_in_turn

DEMO = Path(str(resources.files("hf_whittle"))) / "demo"
BATCH, TEMPERATURE = 8, 0.9
SEEDS = (1, 16, 256)


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(DEMO / "recipe.yaml", teacher=str(DEMO / "teacher"), output_dir=folder)
        rows = Inputs(recipe).blocks["test"].with_format("torch")[:]["input_ids"].long()
    teacher = AutoModelForCausalLM.from_pretrained(DEMO / "teacher", dtype=torch.float32).eval()
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    pythia = GPTNeoXForCausalLM(config).eval()
    ids = torch.randint(config.vocab_size, (4 * BATCH, 256), generator=torch.Generator().manual_seed(0))
    return {
        "bytes_per_token": {
            f"{name}, {size:,} entries": encoding(size).bytes_per_token
            for size in (2048, 50304)
            for name, encoding in {"12 samples": Samples, "top 1024": TopK}.items()
        },
        "speed": {
            "demo": {
                "entries": teacher.config.vocab_size,
                "parameters": teacher.num_parameters(),
                **measure_speed(teacher, rows[: 4 * BATCH], run_teacher=True),
            },
            "Pythia's vocabulary": {
                "entries": config.vocab_size,
                **measure_speed(pythia, ids, run_teacher=False),
            },
        },
        "gradient_bias": measure_bias(teacher, rows[:4]),
    }


@torch.no_grad()
def measure_speed(teacher: Any, input_ids: torch.Tensor, run_teacher: bool) -> dict[str, Any]:
    """Tokens per second, batch by batch: read and unpacked from a store, and run through the teacher."""
    batches = input_ids.split(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, Any] = {
            name: store_targets(teacher, input_ids, Path(folder) / name, kind=kind, progress=False)
            for name, kind in {"12 samples": "sample", "top 1024": "top-k"}.items()
        }
        functions = {name: partial(for_each, store.targets, batches) for name, store in stores.items()}
        if run_teacher:
            functions["teacher"] = partial(for_each, lambda batch: teacher(input_ids=batch, use_cache=False), batches)
        seconds = time_in_turn(functions)
        files = {
            name: sum(path.stat().st_size for path in store.folder.glob("*.safetensors")) / store.tokens
            for name, store in stores.items()
        }
    speeds = {name: input_ids.numel() / value for name, value in seconds.items()}
    return {
        "bytes_per_token_in_files": files,
        "tokens_per_second": speeds,
        **(
            {"ratio_to_the_teacher": {name: speeds[name] / speeds["teacher"] for name in stores}} if run_teacher else {}
        ),
    }


def for_each(function: Any, batches: Any) -> None:
    for batch in batches:
        function(batch)


def measure_bias(teacher: Any, input_ids: torch.Tensor) -> dict[str, Any]:
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(DEMO / "teacher", dtype=torch.float32)
    space = SearchSpace.from_config(supernet.config, granularity="coarse", layer_wise=True)
    model = extract_subnet(supernet, space.sample(Random(0), ParameterBin(800_000, 880_000))).eval()
    with torch.no_grad():
        student, of_teacher = (m(input_ids=input_ids).logits.flatten(0, 1).float() for m in (model, teacher))
    probabilities = (of_teacher / TEMPERATURE).softmax(-1)
    size = probabilities.shape[-1]
    expected = gradient(student, DenseTargets(of_teacher))

    def bias(mean: torch.Tensor) -> float:
        return ((mean - expected).norm() / expected.norm()).item()

    def kept(encoding: Encoding, block: int = 0) -> SparseTargets:
        return encoding.decode(encoding.encode(probabilities, encoding.numbers(block, len(probabilities))))

    biases: dict[str, float] = {}
    for k in (8, 64, 1024):
        targets = kept(TopK(size, k))
        renormalized = F.normalize(targets.probabilities, p=1, dim=-1)
        biases[f"top {k}, the rest as one entry"] = bias(gradient(student, targets))
        biases[f"top {k}, renormalized"] = bias(gradient(student, SparseTargets(targets.ids, renormalized, False)))
    total = torch.zeros_like(student)
    for seed in range(max(SEEDS)):
        total += gradient(student, kept(Samples(size, seed=seed)))
        if seed + 1 in SEEDS:
            biases[f"12 samples, mean of {seed + 1} seeds"] = bias(total / (seed + 1))
    return {
        "tokens": len(student),
        "student_parameters": model.num_parameters(),
        "mean_probability_of_the_top": {
            k: probabilities.topk(k).values.sum(-1).mean().item() for k in (1, 8, 64, 1024)
        },
        "relative_difference_of_the_mean_gradient": biases,
    }


def gradient(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Gradient of the KL divergence with respect to the student's logits."""
    leaf = logits.clone().requires_grad_()
    labels = torch.zeros(len(leaf), dtype=torch.long)
    loss = fused_distillation_loss(leaf, None, targets, labels, LossWeights(0.0, 1.0, TEMPERATURE))
    return torch.autograd.grad(loss.total, leaf)[0]
