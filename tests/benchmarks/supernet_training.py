"""Training the demo's super-network before the search: perplexity in the bin and of the full network, by strategy.

Each strategy trains a copy on the same blocks, its subnets drawn in the demo's bin; then the same search with the same
seed goes through each copy. Perplexities on the search text, 4,096 tokens, and on the test text, 16,384 tokens. Beside
them, the student of the untrained super-network, trained alone on the same blocks. Finished measurements are kept in
`tests/benchmarks/runs` and not repeated.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_whittle import (
    AdditiveSearchConfig,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
    search_subnets,
)
from hf_whittle.cost import training_flops_per_token
from hf_whittle.data import collate_blocks
from hf_whittle.evaluation import as_input_ids, cross_entropy, perplexity
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

BIN = ParameterBin(800_000, 880_000)
SEARCH = AdditiveSearchConfig(seed=0, generations=4)
STEPS, BATCH, LENGTH = 80, 16, 256
TOKENS = STEPS * BATCH * LENGTH
TRAINING: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 5e-4,
    "warmup_steps": 8,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 0,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "no training": {},
    "standard": {"strategy": "standard"},
    "random": {"strategy": "random"},
    "sandwich": {"strategy": "sandwich"},
}
RUNS = Path(__file__).parent / "runs" / "supernet_training"


def measure() -> dict[str, Any]:
    folder = Path(str(resources.files("hf_whittle"))) / "demo"
    recipe = Recipe.load(folder / "recipe.yaml", teacher=str(folder / "teacher"), output_dir=str(RUNS / "demo"))
    demo = Inputs(recipe)
    rows = {name: _kept(name, partial(_measure, demo, settings)) for name, settings in STRATEGIES.items()}
    best = SubnetConfig.from_dict(rows["no training"]["best"])
    return {**rows, "student trained instead": _kept("student", partial(_train_student, demo, best))}


def _kept(name: str, measure_it: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, or read the result of an earlier measurement from its file."""
    path = RUNS / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure_it()))
    return json.loads(path.read_text())


def _measure(demo: Inputs, settings: dict[str, Any]) -> dict[str, Any]:
    supernet = copy.deepcopy(demo.supernet)
    spent = _train(supernet, demo, settings) if settings else {"tokens": 0, "teraflops": 0.0}
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    found = search_subnets(
        supernet, space, bin=BIN, eval_dataset=demo.blocks["search"], config=SEARCH, batch_size=4, progress=False
    )
    config = supernet.config
    full = SubnetConfig(
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    )
    perplexities = {
        split: {
            name: round(Perplexity(supernet, demo.blocks[split], batch_size=4)(subnet), 3)
            for name, subnet in (("best in the bin", found.best), ("full network", full))
        }
        for split in ("search", "test")
    }
    return {
        "training": spent,
        "search": {"evaluations": len(found.evaluations), "teraflops": round(found.flops / 1e12, 3)},
        "perplexity": perplexities,
        "best": found.best.to_dict(),
    }


def _train(supernet: Any, demo: Inputs, settings: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        args = SupernetConfig(output_dir=folder, **TRAINING, **settings)
        trainer = SupernetTrainer(supernet, args, train_dataset=demo.blocks["train"], bin=BIN)
        trainer.train()
    return {"tokens": TOKENS, "teraflops": round(trainer.state.total_flos / 1e12, 3)}


def _train_student(demo: Inputs, subnet: SubnetConfig) -> dict[str, Any]:
    """Train the student of the untrained super-network on the same blocks with the same settings."""
    student, vocabulary = extract_subnet(demo.supernet, subnet), demo.supernet.config.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(output_dir=folder, **TRAINING)
        Trainer(student, args, data_collator=collate_blocks, train_dataset=demo.blocks["train"]).train()
    flops = TOKENS * training_flops_per_token(demo.supernet.config, subnet, sequence_length=LENGTH)
    return {
        "training": {"tokens": TOKENS, "teraflops": round(flops / 1e12, 3)},
        "perplexity": {
            split: round(perplexity(cross_entropy(student, as_input_ids(demo.blocks[split], vocabulary), 4)), 3)
            for split in ("search", "test")
        },
    }
