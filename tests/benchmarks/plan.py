"""Peak memory of distillation steps and of evaluations against the plan's, on a CPU in single precision.

Each is measured in a process of its own, from before the models are made to the end of the third step, or of an
evaluation; that of a search is of the whole super-network, by perplexity, in a batch of the default size. Weights are
random. The teacher, which is the super-network, has the shapes of the demo's, with a student of 880k parameters, or of
Pythia-410M, with Pythia-160M as the student; blocks of the latter are short, so that it fits beside other jobs.

The demo is measured twice: as it is, and with each tensor of 64 kB or more in memory of its own. The heap of the C
library keeps holes between smaller tensors, which no plan of tensors knows of.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig

import hf_whittle
from hf_whittle import AutoSuperNetForCausalLM, DistillationConfig, DistillationTrainer, SubnetConfig
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.plan.training_memory import Step, blocks_at_a_time, cross_entropy_memory, optimizer_bytes

from .measuring import peak_memory

DEMO = Path(hf_whittle.__file__).parent / "demo" / "teacher"
PYTHIA: dict[str, Any] = {"vocab_size": 50304, "rotary_pct": 0.25, "max_position_embeddings": 2048}
STEPS = 3
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "demo": (
        {"hidden_size": 92, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 368},
        {"batch": 8, "length": 256},
    ),
    "pythia-410m": (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        {"batch": 4, "length": 256},
    ),
}
"""By name, the student's sizes and the size of a batch."""


def measure() -> dict[str, Any]:
    return {name: _compare(name) for name in SHAPES}


def configs(name: str) -> tuple[Any, Any]:
    """Configurations of the student and of the teacher."""
    sizes = SHAPES[name][0]
    if name == "demo":
        teacher: Any = AutoConfig.from_pretrained(DEMO)
    else:
        whole: dict[str, Any] = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        teacher = GPTNeoXConfig(**PYTHIA, **whole)
    return type(teacher)(**{**teacher.to_dict(), **sizes}), teacher


def arguments(name: str, **changes: Any) -> DistillationConfig:
    """Arguments of the training; both models are trained in single precision."""
    batch = SHAPES[name][1]["batch"]
    settings: dict[str, Any] = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch}
    settings |= {"max_steps": STEPS, "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    return DistillationConfig(output_dir="unused", use_cpu=True, report_to="none", **settings, **changes)


def planned(name: str, **changes: Any) -> dict[str, float]:
    """Megabytes that the plan gives."""
    student, teacher = configs(name)
    args = arguments(name, **changes)
    step = Step(args, SHAPES[name][1]["length"])
    with torch.device("meta"):
        parameters, of_teacher = (
            AutoModelForCausalLM.from_config(each).num_parameters() for each in (student, teacher)
        )
    weights = 4 * (parameters + (of_teacher if args.has_teacher else 0))
    optimizer = optimizer_bytes(args, parameters)
    peak = step.memory(student, teacher if args.has_teacher else None).peak
    return {
        "weights": weights / 2**20,
        "optimizer": optimizer / 2**20,
        "training": (weights + optimizer + max(peak, 4 * parameters)) / 2**20,
        "evaluation": (weights + step.evaluation(student)) / 2**20,
    }


def _prepare() -> None:
    """Load what a training loads, by a training of a tiny model."""
    tiny = GPTNeoXConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    torch.manual_seed(0)
    _run(tiny, tiny, arguments("demo"), 16, train=True)


def _work(name: str, train: bool, changes: dict[str, Any], _: Any) -> None:
    student, teacher = configs(name)
    _run(student, teacher, arguments(name, **changes), SHAPES[name][1]["length"], train)


def _run(student: Any, teacher: Any, args: DistillationConfig, length: int, train: bool) -> None:
    """Train for some steps, or evaluate."""
    generator = torch.Generator().manual_seed(0)
    rows = args.per_device_train_batch_size * (STEPS if train else 1) * args.gradient_accumulation_steps
    input_ids = torch.randint(student.vocab_size, (rows, length), generator=generator)
    blocks = Dataset.from_dict({"input_ids": input_ids.tolist()}).with_format("numpy")
    trainer = DistillationTrainer(
        AutoModelForCausalLM.from_config(student, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_config(teacher, dtype=torch.float32) if args.has_teacher else None,
        args=args,
        train_dataset=blocks,
        eval_dataset=blocks,
    )
    if train:
        trainer.train()
    else:
        trainer.evaluate()


CASES: dict[str, dict[str, Any]] = {
    "distillation": {},
    "text alone": {"beta": 0.0},
    "activation checkpointing": {"activation_checkpointing": True},
    "accumulated gradients": {"gradient_accumulation_steps": 2},
}


def _compare(name: str) -> dict[str, Any]:
    cases = CASES if name == "demo" else {"distillation": {}}
    measured = {case: _case(name, changes) for case, changes in cases.items()}
    return {"batch": SHAPES[name][1], "cases": measured | {"search": {"evaluation": _search(name)}}}


def _search(name: str) -> dict[str, Any]:
    """Memory of an evaluation of a search."""
    teacher, length = configs(name)[1], SHAPES[name][1]["length"]
    blocks = blocks_at_a_time(length, True, teacher)
    with torch.device("meta"):
        weights = 4 * AutoModelForCausalLM.from_config(teacher).num_parameters()
    plan = (weights + cross_entropy_memory(teacher, blocks, length)) / 2**20
    return _stage(name, plan, partial(_evaluate, name, blocks)) | {"blocks": blocks}


def _evaluate(name: str, blocks: int, _: Any) -> None:
    """Evaluate a super-network with random weights as a search does."""
    config = configs(name)[1]
    supernet = AutoSuperNetForCausalLM.from_config(config)
    ids = torch.randint(config.vocab_size, (blocks, SHAPES[name][1]["length"]))
    Perplexity(supernet, ids)(SubnetConfig.full(config))


def _case(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    plan = planned(name, **changes)
    stages = {"training": True} if changes else {"training": True, "evaluation": False}
    return {stage: _stage(name, plan[stage], partial(_work, name, train, changes)) for stage, train in stages.items()}


def _stage(name: str, plan: float, work: Callable[[Any], None]) -> dict[str, Any]:
    found = {"": peak_memory(_prepare, work)}
    if name == "demo":
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # read by a process that starts
        found["_without_holes"] = peak_memory(_prepare, work)
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    results: dict[str, Any] = {"planned_mb": round(plan)}
    for how, megabytes in found.items():
        results[f"measured_mb{how}"] = round(megabytes)
        results[f"planned_over_measured{how}"] = round(plan / megabytes, 3)
    return results
