"""A small distillation on blocks, some with few labels; as a script for `torchrun`, on two processes."""

import sys

import torch
from fixtures_processes import print_at_exit_whether_the_group_was_ended
from tokenizers import Tokenizer, models
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.distillation.config import DistillationConfig
from hf_whittle.distillation.trainer import DistillationTrainer

VOCABULARY, LENGTH, BLOCKS = 50, 12, 16
CASES = {
    "batches of 2": {"per_device_train_batch_size": 2},
    "batches of 1, accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "hidden states": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "hidden_weight": 0.5},
}
"""Settings of each of two processes that give the weights of one process with batches of 4."""
SUBNET = SubnetConfig(tuple(range(1, 16, 2)), (0, 2), 1, 16)


def make_model(seed, layers=2, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=intermediate_size,
        max_position_embeddings=LENGTH,
        initializer_range=0.2,
    )
    return GPTNeoXForCausalLM(config)


def make_blocks(uneven=True, vocabulary=VOCABULARY):
    """Blocks with labels; of each four, one has all labels, one has none and two have a few."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(vocabulary, (BLOCKS, LENGTH), generator=generator)
    labels = input_ids.clone()
    if uneven:
        for row, kept in zip(labels, [LENGTH, 3, 0, 7] * BLOCKS, strict=False):
            row[torch.randperm(LENGTH, generator=generator)[: LENGTH - kept]] = -100
    return [{"input_ids": ids, "labels": row} for ids, row in zip(input_ids, labels, strict=True)]


def collate(blocks):
    return {name: torch.stack([block[name] for block in blocks]) for name in ("input_ids", "labels")}


def make_arguments(kind, output_dir, **changes):
    values = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "learning_rate": 0.2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return kind(output_dir=str(output_dir), **{**values, **changes})


def make_trainer(output_dir, student=None, teacher=None, blocks=None, **changes):
    """A trainer of one small model from another; `changes` are those of its arguments."""
    teacher = teacher or make_model(seed=2, layers=3)
    if student is None:
        student = extract_subnet(teacher, SUBNET) if changes.get("hidden_weight") else make_model(seed=1)
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=make_arguments(DistillationConfig, output_dir, **changes),
        train_dataset=blocks or make_blocks(),
        eval_dataset=make_blocks(uneven=False)[:4],
        data_collator=collate,
    )


def evaluate(trainer):
    """Evaluate a trained model on three blocks, one of which two processes read twice: its loss and bits per byte."""
    trainer.args.per_device_eval_batch_size = 1  # the loss of a larger batch is one for all of its blocks
    tokens = {"a" * (length + 1): length for length in range(VOCABULARY)}
    trainer.processing_class = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(tokens, [])))
    found = trainer.evaluate(trainer.eval_dataset[:3])
    return torch.tensor([found["eval_loss"], found["eval_bits_per_byte"]])


def main(output_dir):
    """Train every case, and save its weights and logged numbers."""
    for name, changes in CASES.items():
        trainer = make_trainer(f"{output_dir}/{name}", **changes)
        trainer.train()
        evaluated = evaluate(trainer)
        if trainer.is_world_process_zero():
            weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
            numbers = {"logs": logged_numbers(trainer), "evaluated": evaluated, **projections(trainer)}
            torch.save({**weights, **numbers}, f"{output_dir}/{name}.pt")


def projections(trainer):
    return {} if trainer._hidden is None else trainer._hidden.state_dict()


def logged_numbers(trainer):
    names = ("loss", "cross_entropy", "kl")
    return torch.tensor([[row[name] for name in names] for row in trainer.state.log_history if "kl" in row])


if __name__ == "__main__":
    print_at_exit_whether_the_group_was_ended()
    main(*sys.argv[1:])
