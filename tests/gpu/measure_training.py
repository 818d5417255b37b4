"""Tokens a second and peak memory of our trainers, against a plain loop with the naive loss and plain `Trainer`."""

import collections
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    GPTNeoXSuperNetForCausalLM,
    SupernetConfig,
    SupernetTrainer,
)
from hf_whittle.data import collate_blocks

from .comparing import DEVICE, HAS_GPU
from .inner import LossWeights, naive_distillation_loss
from .measuring import Rows, attempt, peak_megabytes, synchronized
from .sizes import SIZES, build, random_blocks

ROOT = Path(__file__).parents[2]
WARM_UP = 3


def cases() -> dict[str, Callable[[], Rows]]:
    names = [name for name, _ in SIZES.models]
    return {f"student {name}": partial(_compare, name) for name in names} | {
        "super-network": partial(_supernet, names[0]),
        "waits for the device": partial(_waits, names[0]),
    }


class Clock(TrainerCallback):
    """Seconds of the steps after the first ones."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            synchronized(lambda: None)
            self._began = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronized(lambda: None)
        self.seconds.append(time.perf_counter() - self._began)


def _blocks() -> torch.Tensor:
    batch, length = SIZES.batch
    return random_blocks(batch * (WARM_UP + SIZES.steps), length)


def _arguments(kind: Any, folder: str, **changes: Any) -> Any:
    settings = {
        "max_steps": WARM_UP + SIZES.steps,
        "per_device_train_batch_size": SIZES.batch[0],
        "learning_rate": 1e-4,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not HAS_GPU,
    }
    return kind(output_dir=folder, **{**settings, **changes})


def _row(train: Callable[[], float]) -> dict[str, Any]:
    """Tokens per second of the timed steps, whose seconds `train` returns, and peak memory of the whole training."""
    seconds: list[float] = []
    peak = peak_megabytes(lambda: seconds.append(train()))
    tokens = SIZES.steps * SIZES.batch[0] * SIZES.batch[1]
    return {"tokens_per_second": round(tokens / seconds[0]), "peak_megabytes": round(peak, 1)}


def _compare(name: str) -> Rows:
    sizes = dict(SIZES.models)
    teacher = build(GPTNeoXForCausalLM, list(sizes.values())[-1], torch.bfloat16, seed=1).eval()
    ways: dict[str, Callable[[Any], float]] = {
        "plain loop, naive loss": partial(_loop, teacher),
        "DistillationTrainer": partial(_distil, teacher, {}),
        "DistillationTrainer, gradient checkpointing": partial(_distil, teacher, {"gradient_checkpointing": True}),
        "Trainer without a teacher": _plain,
    }

    def train(way: str) -> float:
        return ways[way](build(GPTNeoXForCausalLM, sizes[name]))

    rows = {way: attempt(partial(_row, partial(train, way))) for way in ways}
    first = rows["plain loop, naive loss"].get("tokens_per_second")
    for row in rows.values():
        if first and "error" not in row:
            row["ratio_to_first"] = round(row["tokens_per_second"] / first, 4)
    return rows


def _distil(teacher: Any, changes: dict[str, Any], student: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=_arguments(DistillationConfig, folder, **changes),
            train_dataset=Dataset.from_dict({"input_ids": _blocks().tolist()}),
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds[0]


def _plain(student: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        Trainer(
            student,
            _arguments(TrainingArguments, folder),
            data_collator=collate_blocks,
            train_dataset=Dataset.from_dict({"input_ids": _blocks().tolist()}),
            callbacks=[clock],
        ).train()
    return clock.seconds[0]


def _loop(teacher: Any, student: Any) -> float:
    """Train with autocast, the naive loss, clipping and the optimizer, and nothing else."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    weights, batches = LossWeights(), _blocks().to(DEVICE).split(SIZES.batch[0])
    student.train()
    began = 0.0
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            synchronized(lambda: None)
            began = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            with torch.no_grad():
                targets = teacher(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
            logits = student(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        labels = batch[:, 1:].flatten()
        (naive_distillation_loss(logits, targets, labels, weights).total / len(labels)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    synchronized(lambda: None)
    return time.perf_counter() - began


def _supernet(name: str) -> Rows:
    """Train the full network alone, and by sandwich: with the smallest subnet and a random one in each step."""

    def train(strategy: str) -> float:
        model = build(GPTNeoXSuperNetForCausalLM, dict(SIZES.models)[name])
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            arguments = _arguments(SupernetConfig, folder, strategy=strategy)
            blocks = Dataset.from_dict({"input_ids": _blocks().tolist()})
            SupernetTrainer(model, arguments, train_dataset=blocks, callbacks=[clock]).train()
        return clock.seconds[0]

    return {strategy: attempt(partial(_row, partial(train, strategy))) for strategy in ("standard", "sandwich")}


def _waits(name: str) -> Rows:
    """Count waits for the device in a training step, by their place in the code."""
    if not HAS_GPU:
        return {"skipped": {"reason": "a CPU is never waited for"}}
    sizes = dict(SIZES.models)
    teacher = build(GPTNeoXForCausalLM, sizes[name], torch.bfloat16, seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _distil(teacher, {"logging_strategy": "no"}, build(GPTNeoXForCausalLM, sizes[name]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [one for one in caught if "synchroniz" in str(one.message)]
    places = collections.Counter(f"{_without_machine(one.filename)}:{one.lineno}" for one in found)
    steps = WARM_UP + SIZES.steps
    return {place: {"waits_per_step": round(count / steps, 2)} for place, count in places.most_common(30)}


def _without_machine(file: str) -> str:
    """The path of a source file below the folder of packages or the repository."""
    return file.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
