"""Script for `torchrun`: a small distillation with teacher, student or both sharded over two processes."""

import gc
import json
import sys
from pathlib import Path

import torch
from fixtures_distillation import collate, logged_numbers, make_arguments, make_blocks, make_model, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from hf_whittle import DistillationConfig, DistillationTrainer

ZERO3 = Path(__file__).parents[2] / "examples" / "deepspeed_zero3.json"


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.gpt_neox.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def teacher(output_dir):
    """Train an unsharded student from a teacher sharded with FSDP2."""
    torch.distributed.init_process_group("gloo")
    trainer = make_trainer(output_dir, teacher=shard(make_model(seed=2, layers=3)), per_device_train_batch_size=2)
    trainer.train()
    assert any(hasattr(parameter, "full_tensor") for parameter in trainer.teacher.parameters())
    if trainer.is_world_process_zero():
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        torch.save({**weights, "logs": logged_numbers(trainer)}, f"{output_dir}/trained.pt")


def student(output_dir):
    """Save the gradients of one loss for a student sharded with FSDP2; each process has half of the batch."""
    trainer = make_trainer(output_dir, blocks=make_blocks(uneven=False))
    shard(trainer.model).train()
    rank = torch.distributed.get_rank()
    batch = collate(make_blocks(uneven=False)[2 * rank : 2 * rank + 2])
    trainer.compute_loss(trainer.model, batch).backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in trainer.model.named_parameters()}
    if rank == 0:
        torch.save(gradients, f"{output_dir}/gradients.pt")


def zero3(output_dir):
    """Train student and teacher, both sharded by DeepSpeed, with the configuration of the examples."""
    import deepspeed

    deepspeed.init_distributed("gloo")
    settings = json.loads(ZERO3.read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # shard even the smallest weights
    arguments = make_arguments(DistillationConfig, output_dir, per_device_train_batch_size=2, deepspeed=settings)
    trainer = DistillationTrainer(
        AutoModelForCausalLM.from_pretrained(f"{output_dir}/student"),  # sharded while it is loaded
        f"{output_dir}/teacher",
        arguments,
        train_dataset=make_blocks(),
        data_collator=collate,
    )
    trainer.train()
    assert all(hasattr(p, "ds_id") for model in (trainer.model, trainer.teacher) for p in model.parameters())
    trainer.save_model(f"{output_dir}/trained")
    if trainer.is_world_process_zero():
        torch.save(logged_numbers(trainer), f"{output_dir}/logs.pt")


if __name__ == "__main__":
    {"teacher": teacher, "student": student, "zero3": zero3}[sys.argv[1]](sys.argv[2])
    gc.collect()  # sharded models hold the process group
    torch.distributed.destroy_process_group()
