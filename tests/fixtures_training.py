"""A tiny super-network trained by the plain `Trainer` and searched; as a script, on several processes.

torchrun --nproc-per-node 2 fixtures_training.py FOLDER
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPTNeoXConfig, Trainer, TrainingArguments, set_seed

from hf_whittle import EvolutionConfig, GPTNeoXSuperNetForCausalLM, ParameterBin, SubnetSearchCallback
from hf_whittle.data import collate_blocks

BIN = ParameterBin(4_000, 9_000)
CONFIG = EvolutionConfig(generations=2, population_size=6, num_offspring=4, num_elites=2)


def make_supernet(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    rest = {"intermediate_size": 64, "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None}
    config = GPTNeoXConfig(**{**sizes, **rest, "hidden_dropout": 0.1, "initializer_range": 0.2, **changes})
    return GPTNeoXSuperNetForCausalLM(config)


def make_blocks(number=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Dataset.from_dict({"input_ids": torch.randint(1, 61, (number, 16), generator=generator).tolist()})


def make_trainer(folder, callbacks=(), model=None, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "logging_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    set_seed(0)
    return Trainer(
        model=model or make_supernet(),
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=make_blocks(),
        eval_dataset=make_blocks(8, seed=1),
        data_collator=collate_blocks,
        callbacks=list(callbacks),
    )


def make_callback(**changes):
    return SubnetSearchCallback(**{"bin": BIN, "eval_dataset": make_blocks(6, seed=2), "config": CONFIG, **changes})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    callback = make_callback(when="evaluate")
    trainer = make_trainer(folder, [callback], per_device_train_batch_size=2)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / "weights.pt")
    trainer.end()
