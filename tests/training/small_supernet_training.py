"""A small super-network training on blocks, some with few labels; as a script for `torchrun`, on two processes."""

import sys

import fixtures_distillation
import torch
from fixtures_distillation import collate, make_arguments
from fixtures_training import make_supernet

from hf_whittle import SearchSpace, SupernetConfig, SupernetTrainer

VOCABULARY = 61
STRATEGIES = {
    "random": {"strategy": "random", "num_random_subnets": 2},
    "sandwich": {"strategy": "sandwich", "alpha": 0.3, "beta": 0.7, "temperature": 2.0},
    "checkpointed": {"strategy": "ats", "activation_checkpointing": True},
}
BATCHES = {
    "batches of 2": {"per_device_train_batch_size": 2},
    "batches of 1, accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
}
"""Settings of each of two processes that give the weights of one process with batches of 4."""


def make_blocks():
    """Blocks of the super-network's vocabulary, some with few labels."""
    return fixtures_distillation.make_blocks(vocabulary=VOCABULARY)


def make_space(model):
    return SearchSpace.from_config(
        model.config, layer_wise=True, hidden_size=range(8, 33, 4), intermediate_size=range(16, 65, 8)
    )


def make_trainer(output_dir, model=None, blocks=None, callbacks=(), **changes):
    """A trainer of a model without dropout; `changes` are those of its arguments."""
    values = {"max_steps": 4, "per_device_eval_batch_size": 4, "seed": 3, **changes}
    model = model or make_supernet(hidden_dropout=0.0)
    blocks = blocks or make_blocks()
    return SupernetTrainer(
        model=model,
        args=make_arguments(SupernetConfig, output_dir, **values),
        data_collator=collate,
        train_dataset=blocks,
        eval_dataset=blocks[::4],
        search_space=make_space(model),
        callbacks=list(callbacks),
    )


def losses_of(trainer):
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])


def main(output_dir):
    """Train with every strategy and batch size, and save weights and losses of each."""
    for strategy, settings in STRATEGIES.items():
        for batches, changes in BATCHES.items():
            trainer = make_trainer(f"{output_dir}/{strategy}", **settings, **changes)
            trainer.train()
            if trainer.is_world_process_zero():
                weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
                torch.save({**weights, "losses": losses_of(trainer)}, f"{output_dir}/{strategy}, {batches}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
