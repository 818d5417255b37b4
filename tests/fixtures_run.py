"""A recipe of a whole run that takes a tiny teacher seconds."""

import copy
import sysconfig
from pathlib import Path

from hf_whittle.recipe import Recipe

RECIPE = {
    "data": {
        "block_size": 32,
        "search_fraction": 0.15,
        "test_fraction": 0.15,
        "search_tokens": 128,
        "test_tokens": 512,
    },
    "bin": {"low": 30e3, "high": 40e3},
    "search": {
        "algorithm": "evolution",
        "fitness": "perplexity",
        "generations": 2,
        "population_size": 4,
        "num_offspring": 3,
        "num_elites": 2,
        "batch_size": 4,
    },
    "heal": False,
    "training": {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "eval_steps": 2},
}


FEW_IN_STAGES = {"algorithm": "multi-fidelity", "generations": 1, "initial": 1, "sizes": [3, 2, 1]}
"""A search in three stages that takes no time."""


def write_modules(folder, number=40):
    """Copy the beginnings of modules of the standard library into text files."""
    folder.mkdir(exist_ok=True)
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))[:number]
    for path in modules:
        (folder / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    return folder


def make_recipe(teacher, texts, output_dir, **sections):
    """Return the tiny recipe; a given section replaces some of its keys, any other value a key of the recipe."""
    values = copy.deepcopy(RECIPE) | {"teacher": str(teacher), "output_dir": str(output_dir)}
    values["data"]["files"] = [f"{texts}/*.txt"]
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return Recipe.from_dict(values)
