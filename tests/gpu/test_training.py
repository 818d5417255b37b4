"""Trainers on the device in every precision against themselves on the CPU in single precision."""

import copy
import importlib.util
import math

import pytest
import torch
from fixtures_distillation import (
    SUBNET,
    logged_numbers,
    make_arguments,
    make_blocks,
    make_model,
    make_trainer,
)
from training.small_supernet_training import losses_of
from training.small_supernet_training import make_trainer as make_supernet_trainer
from transformers import BitsAndBytesConfig

from hf_whittle import DistillationConfig, DistillationTrainer, LogitStore, extract_subnet, store_targets

from .comparing import DEVICE, HAS_GPU, assert_near, needs_gpu

pytestmark = pytest.mark.gpu
FIVE = {"max_steps": 5, "use_cpu": not HAS_GPU}
MODES = {
    "float32": ({}, 1e-4),
    "tf32": ({"tf32": True}, 2e-2),
    "bfloat16": ({"bf16": True}, 5e-2),
    "float16": ({"fp16": True}, 2e-2),
}
"""Arguments of a precision, and its tolerance against single precision."""
modes = [pytest.param(*MODES[name], id=name, marks=needs_gpu if name in ("tf32", "float16") else ()) for name in MODES]
WAYS = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "hidden states": {"hidden_weight": 0.5},
    "reverse KL": {"divergence": "reverse_kl"},
    "without a teacher": {"beta": 0.0},
}


def weights_of(trainer):
    return {name: weight.detach().cpu().clone() for name, weight in trainer.model.state_dict().items()}


def losses(trainer):
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])


def trained(folder, **changes):
    trainer = make_trainer(folder, **{**FIVE, **changes})
    trainer.train()
    return trainer


@pytest.mark.parametrize("changes, tolerance", modes)
@pytest.mark.parametrize("way", WAYS)
def test_five_steps_are_those_of_the_cpu(tmp_path, way, changes, tolerance):
    found = trained(tmp_path, **WAYS[way], **changes)
    expected = trained(tmp_path, **WAYS[way], use_cpu=True)
    assert {weight.device for weight in found.model.parameters()} == {DEVICE}
    assert_near(losses(found), losses(expected), tolerance)
    assert_near(weights_of(found), weights_of(expected), 10 * tolerance)
    if found.teacher is not None:
        assert_near(logged_numbers(found), logged_numbers(expected), tolerance)
    assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=tolerance)


@pytest.mark.parametrize("changes, tolerance", modes)
@pytest.mark.parametrize("way", ["plain", "hidden states"])
def test_resumed_training_ends_as_one_never_stopped(tmp_path, way, changes, tolerance):
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 6, **changes, **WAYS[way]}
    whole = trained(tmp_path / "whole", **settings)
    trained(tmp_path / "stopped", **{**settings, "max_steps": 3}, save_strategy="steps", save_steps=3)
    resumed = make_trainer(tmp_path / "stopped", **{**FIVE, **settings})
    resumed.train(resume_from_checkpoint=True)
    assert_near(losses(resumed), losses(whole), 1e-3)
    assert_near(weights_of(resumed), weights_of(whole), 1e-3)


@needs_gpu
def test_scaler_of_float16_finds_a_scale(tmp_path):
    """Its first scale overflows; the steps are skipped, and training goes on with finite weights."""
    trainer = trained(tmp_path, fp16=True, max_steps=12, learning_rate=1e-3)
    assert trainer.accelerator.scaler.get_scale() > 1
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    assert losses(trainer).isfinite().all() and losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_teacher_in_half_precision_teaches_alike(tmp_path, dtype):
    found = trained(tmp_path, teacher=make_model(seed=2, layers=3).to(dtype), bf16=dtype == torch.bfloat16)
    assert next(found.teacher.parameters()).dtype == dtype and found.teacher.device == DEVICE
    assert_near(logged_numbers(found), logged_numbers(trained(tmp_path, use_cpu=True)), 5e-2)


@pytest.mark.parametrize("kind", ["sample", "top-k"])
def test_store_made_on_the_device_teaches_as_one_of_the_cpu(tmp_path, kind):
    """Draws depend on the blocks and the teacher alone, so that ids differ only where its last bits do."""
    blocks = torch.stack([row["input_ids"] for row in make_blocks()])
    logs = []
    for device in (DEVICE, torch.device("cpu")):
        teacher, folder = make_model(seed=2, layers=3).to(device), tmp_path / f"store-{len(logs)}"
        store_targets(teacher, blocks, folder, kind=kind, k=20, draws=200, progress=False)
        trainer = DistillationTrainer(
            model=make_model(seed=1),
            teacher_model=LogitStore(folder),
            args=make_arguments(DistillationConfig, tmp_path, **{**FIVE, "use_cpu": device.type == "cpu"}),
            train_dataset=make_blocks(),
        )
        trainer.train()
        logs.append(logged_numbers(trainer))
    assert_near(*logs, 1e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_teacher_in_four_bits(tmp_path):
    make_model(seed=2, layers=3, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "teacher")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    teacher = type(make_model(1)).from_pretrained(
        tmp_path / "teacher", quantization_config=settings, device_map={"": DEVICE}
    )
    found = trained(tmp_path, teacher=teacher)
    whole = trained(tmp_path, teacher=make_model(seed=2, layers=3, hidden_size=64, intermediate_size=128))
    assert_near(logged_numbers(found), logged_numbers(whole), 0.5)


@pytest.mark.parametrize("changes, tolerance", modes)
def test_sandwich_of_a_super_network(tmp_path, changes, tolerance):
    settings = {"strategy": "sandwich", "alpha": 0.3, "beta": 0.7, "temperature": 2.0, "eval_smallest": True}
    losses, metrics = [], []
    for arguments in ({**changes, "use_cpu": not HAS_GPU}, {"use_cpu": True}):  # in turn: one device at a time
        trainer = make_supernet_trainer(tmp_path, **settings, **arguments)
        trainer.train()
        losses.append(losses_of(trainer))
        metrics.append(trainer.evaluate())
    assert_near(*losses, max(tolerance, 1e-3))
    for name in ("eval_loss", "eval_smallest_loss"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=max(tolerance, 1e-3))


@needs_gpu
@pytest.mark.parametrize("way", ["plain", "checkpointed", "hidden states"])
def test_step_holds_no_logits_of_the_whole_batch(tmp_path, way):
    entries, tokens = 50_304, 4 * 1024
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(entries, (16, 1024), generator=generator)
    sizes = {"vocab_size": entries, "hidden_size": 32, "intermediate_size": 64}
    teacher = make_model(seed=2, layers=3, **sizes)
    teacher.config.max_position_embeddings = 1024
    trainer = DistillationTrainer(
        model=extract_subnet(teacher, SUBNET),
        teacher_model=copy.deepcopy(teacher),
        args=make_arguments(
            DistillationConfig,
            tmp_path,
            **{**FIVE, **WAYS[way], "bf16": True, "per_device_train_batch_size": 4, "loss_chunk_size": 256},
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    of_logits = tokens * entries * 4
    assert torch.cuda.max_memory_allocated() - before < of_logits / 2
    assert math.isfinite(losses(trainer)[-1])
