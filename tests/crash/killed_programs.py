"""Four programs that survive a kill at any moment, the plain `Trainer`, which does not, and their outcome.

python killed_programs.py PROGRAM FOLDER            # starts or resumes a program
python killed_programs.py PROGRAM FOLDER --outcome  # prints its outcome
"""

# ruff: noqa: E402 (modules of the tests are imported from their folders)

import argparse
import hashlib
import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

from datasets import Dataset
from file_faults import contents
from fixtures_distillation import make_model
from fixtures_run import make_recipe
from fixtures_stores import store
from fixtures_training import BIN, make_supernet
from fixtures_training import make_blocks as make_search_blocks
from matplotlib.figure import Figure
from small_supernet_training import make_space
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainingArguments, set_seed

from hf_whittle import EvolutionConfig, SubnetSearchCallback, SupernetConfig, SupernetTrainer
from hf_whittle.data import collate_blocks
from hf_whittle.distillation.config import DistillationConfig
from hf_whittle.distillation.trainer import DistillationTrainer
from hf_whittle.run import run

TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}
"""Settings with states of optimizer, dropout and data order, a best checkpoint, and the removal of others."""


def distil(folder, inputs):
    set_seed(1)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(**sizes, intermediate_size=32, max_position_embeddings=16, hidden_dropout=0.1)
    trainer = DistillationTrainer(
        model=GPTNeoXForCausalLM(config),
        teacher_model=make_model(seed=2, layers=3),
        args=DistillationConfig(output_dir=str(folder), **TRAINING),
        train_dataset=_blocks(50, seed=0),
        eval_dataset=_blocks(50, seed=1),
    )
    return _train(trainer, folder)


def train_supernet(folder, inputs):
    supernet = make_supernet()
    config = EvolutionConfig(generations=1, population_size=3, num_offspring=2, num_elites=1)
    trainer = SupernetTrainer(
        model=supernet,
        args=SupernetConfig(
            output_dir=str(folder), **{**TRAINING, "learning_rate": 1.0}
        ),  # so high that the first checkpoint is best
        train_dataset=_blocks(61, seed=0),
        eval_dataset=_blocks(61, seed=1),
        search_space=make_space(supernet),
        callbacks=[SubnetSearchCallback(BIN, make_search_blocks(2), config=config, when="save")],
    )
    return _train(trainer, folder)


def train_plainly(folder, inputs):
    """Train with the plain `Trainer`, which shows that the kills do damage."""
    trainer = Trainer(
        model=make_supernet(),
        args=TrainingArguments(output_dir=str(folder), **TRAINING),
        train_dataset=_blocks(61, seed=0),
        eval_dataset=_blocks(61, seed=1),
        data_collator=collate_blocks,
    )
    return _train(trainer, folder)


def _blocks(vocabulary, seed):
    rows = make_search_blocks(16, seed=seed)["input_ids"]
    return Dataset.from_dict({"input_ids": [[token % vocabulary for token in row] for row in rows]})


def _train(trainer, folder):
    """Train from the last checkpoint, if any, and save the student; returns the step it started from."""
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)
    trainer.save_model(str(folder / "student"))
    return trainer._initial_global_step


def run_recipe(folder, inputs):
    Figure.savefig = lambda figure, path, **options: Path(path).write_bytes(b"a picture")  # drawing takes seconds
    data = {"search_tokens": 64, "test_tokens": 64, "calibration_tokens": 64}
    settings = {"data": data, "training": {"max_steps": 4, "save_steps": 2}}
    search = {"generations": 1, "population_size": 3, "num_offspring": 2, "num_elites": 1}
    recipe = make_recipe(inputs / "teacher", inputs / "texts", folder, **settings, search=search, heal=True)
    run(recipe, progress=False)


def store_teacher(folder, inputs):
    store(folder)


PROGRAMS = {
    "DistillationTrainer": distil,
    "SupernetTrainer": train_supernet,
    "hf-whittle run": run_recipe,
    "store_targets": store_teacher,
    "transformers.Trainer": train_plainly,
}
_BYTES = (
    ".safetensors",
    ".jsonl",
    ".yaml",
    "search.json",
    "subnet.json",
    "store.json",
    "tokenizer.json",
    "healing.json",
)
"""Endings of files that must be equal byte for byte; others contain times, or lack facts after an interruption."""


def outcome(folder):
    """Names of all files, with a digest of those that must be equal byte for byte."""
    return {
        name: hashlib.sha256(content).hexdigest()[:12] if content is not None and name.endswith(_BYTES) else ""
        for name, content in sorted(contents(folder).items())
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=Path, help="folder with a teacher and texts, for hf-whittle run")
    parser.add_argument("--outcome", action="store_true")
    asked = parser.parse_args()
    if asked.outcome:
        print(json.dumps(outcome(asked.folder), indent=1))
    else:
        print("resumed from step", PROGRAMS[asked.program](asked.folder, asked.inputs) or 0)
