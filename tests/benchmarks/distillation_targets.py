"""Targets of distillation: text alone, the teacher's whole distribution, its top entries, or samples from it.

The subnet that the paper's search finds in the demo's bin is trained with a learning rate of 4e-3 for 160 steps of
2,048 tokens, on the same blocks in the same order, with two seeds. Perplexity is measured on the demo's test text; the
vocabulary has 2,048 entries.
"""

import statistics
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_whittle import DistillationTrainer, SubnetConfig, extract_subnet
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

STEPS, SEEDS = 160, 2
SUBNET = SubnetConfig(116, 6, (8, 5, 7, 8, 7, 1), (418, 2, 2, 2, 132, 8))
STORES: dict[str, dict[str, Any]] = {
    "12 samples": {"kind": "sample", "draws": 12},
    "50 samples": {"kind": "sample", "draws": 50},
    "top 12": {"kind": "top-k", "k": 12},
    "top 64": {"kind": "top-k", "k": 64},
    "top 1024": {"kind": "top-k", "k": 1024},
}


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> dict[str, Any]:
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    recipe = Recipe.load(demo / "recipe.yaml", teacher=str(demo / "teacher"), output_dir=str(folder / "demo"))
    inputs = Inputs(recipe)
    count = STEPS * recipe.training_arguments(folder).per_device_train_batch_size
    train, whole = inputs.blocks["train"].shuffle(seed=0).select(range(count)), inputs.load_teacher()
    teachers: dict[str, Any] = {"text alone": None, "whole distribution": whole}
    bytes_per_token: dict[str, float] = {}
    for name, options in STORES.items():
        store = store_targets(whole, train, folder / name, progress=False, **options)
        teachers[name], bytes_per_token[name] = store, store.bytes_per_token
    rows: dict[str, Any] = {}
    for name, teacher in teachers.items():
        ends = [_train(inputs, train, teacher, folder / f"{name} {seed}", seed) for seed in range(SEEDS)]
        rows[name] = {
            "perplexity": [round(end, 3) for end in ends],
            "mean_perplexity": round(statistics.mean(ends), 3),
            "bytes_per_token": bytes_per_token.get(name),
        }
        print(name, rows[name], flush=True)
    return rows


def _train(inputs: Inputs, train: Any, teacher: Any, folder: Path, seed: int) -> float:
    args = inputs.recipe.training_arguments(
        folder, max_steps=STEPS, seed=seed, disable_tqdm=True, save_strategy="no", eval_strategy="no",
        eval_on_start=False, learning_rate=4e-3, beta=0.0 if teacher is None else 0.8,
    )  # fmt: skip
    set_seed(seed)
    trainer = DistillationTrainer(
        model=extract_subnet(inputs.supernet, SUBNET),
        teacher_model=teacher,
        args=args,
        train_dataset=train,
        eval_dataset=inputs.blocks["test"],
    )
    trainer.train()
    return trainer.evaluate()["eval_perplexity"]
