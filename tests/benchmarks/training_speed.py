"""Tokens a second and peak memory of distillation by several trainers, on the same models and blocks.

A teacher of the shapes of SmolLM2-135M and a student of 20 of its 30 layers, both of random weights, in single
precision on one thread; a step reads 2 blocks of 512 tokens. The plain loop and `GKDTrainer` of TRL compute whole
logits. `DistillationTrainer` of TRL generates completions and learns from these; here it gets the blocks as completions
and its loss and steps alone are timed. TRL's trainers have no cross-entropy beside the divergence. Rows of TRL need the
extra `bench`.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

import hf_whittle
from hf_whittle import DistillationConfig, DistillationTrainer
from hf_whittle.data import collate_blocks
from hf_whittle.loss.divergences import LossWeights, naive_distillation_loss

from .measuring import peak_memory

VOCABULARY, BATCH, LENGTH = 49_152, 2, 512
STEPS, ROUNDS = 2, 2
TOKENIZER = Path(hf_whittle.__file__).parent / "demo" / "teacher"

Train = Callable[[Any, Any], list[float]]
"""Trains a student by a teacher; returns the seconds of each step."""


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    ways: dict[str, Train] = {"plain loop, naive loss": plain_loop, "DistillationTrainer": ours}
    if importlib.util.find_spec("trl"):
        import trl

        ways |= {f"GKDTrainer, trl {trl.__version__}": gkd, f"DistillationTrainer, trl {trl.__version__}": trl_distil}
    memory = {name: peak_memory(models, partial(run, train)) for name, train in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, train in ways.items():
            seconds[name] += run(train, models())[1:]
    first, *_ = (median(times) for times in seconds.values())
    return {
        name: {
            "tokens_per_second": round(BATCH * LENGTH / median(times), 1),
            "ratio_to_plain_loop": round(first / median(times), 3),
            "peak_megabytes": round(memory[name]),
        }
        for name, times in seconds.items()
    }


def models() -> tuple[Any, Any]:
    """Student and teacher."""
    made = []
    for layers in (20, 30):
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        made.append(LlamaForCausalLM(config))
    return made[0], made[1].eval()


def run(train: Train, pair: tuple[Any, Any]) -> list[float]:
    return train(*pair)


def blocks() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, ((1 + STEPS) * BATCH, LENGTH), generator=generator)


def dataset() -> Dataset:
    return Dataset.from_dict({"input_ids": blocks().tolist()})


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def trained(make: Callable[..., Any], arguments: type[TrainingArguments], **settings: Any) -> list[float]:
    """Seconds of the steps of a trainer that `make` gives for its arguments and callbacks."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            output_dir=folder,
            max_steps=1 + STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        )
        make(args=args, callbacks=[clock]).train()
    return clock.seconds


def ours(student: Any, teacher: Any) -> list[float]:
    make = partial(DistillationTrainer, student, teacher_model=teacher, train_dataset=dataset())
    return trained(make, DistillationConfig)


def plain_loop(student: Any, teacher: Any) -> list[float]:
    """The naive loss, clipping and the optimizer, and nothing else."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    weights, seconds = LossWeights(), []
    student.train()
    for batch in blocks().split(BATCH):
        began = time.perf_counter()
        with torch.no_grad():
            targets = teacher(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits = student(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        labels = batch[:, 1:].flatten()
        (naive_distillation_loss(logits, targets, labels, weights).total / len(labels)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


def gkd(student: Any, teacher: Any) -> list[float]:
    """TRL's trainer of a fixed text: forward KL divergence of whole logits."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**collate_blocks(rows), "attention_mask": torch.ones(len(rows), LENGTH, dtype=torch.long)}

    make = partial(
        GKDTrainer,
        student,
        teacher,
        data_collator=collate,
        train_dataset=dataset(),
        processing_class=AutoTokenizer.from_pretrained(TOKENIZER),
    )
    return trained(make, GKDConfig, lmbda=0.0, beta=0.0, bf16=False, gradient_checkpointing=False)


def trl_distil(student: Any, teacher: Any) -> list[float]:
    """TRL's trainer of generated text: chunks of the same divergence, on blocks that stand for completions."""
    from trl import DistillationConfig as Config
    from trl import DistillationTrainer as Distillation

    class OnBlocks(Distillation):
        def _prepare_inputs(self, inputs: Any) -> dict[str, torch.Tensor]:
            ids = blocks()[self._step * BATCH :][:BATCH]
            parts = {"prompt": ids[:, :1], "completion": ids[:, 1:]}
            masks = {f"{name}_mask": torch.ones_like(part) for name, part in parts.items()}
            tokens = torch.tensor(float(parts["completion"].numel()))
            return {f"{name}_ids": part for name, part in parts.items()} | masks | {"num_items_in_batch": tokens}

    make = partial(
        OnBlocks,
        student,
        teacher,
        train_dataset=Dataset.from_dict({"prompt": ["text"] * len(blocks())}),
        processing_class=AutoTokenizer.from_pretrained(TOKENIZER),
    )
    return trained(make, Config, beta=0.0, bf16=False, gradient_checkpointing=False)
