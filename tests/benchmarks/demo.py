"""The demo's text and super-network, or those of a deeper teacher, and trainings on them."""

from functools import cache
from importlib import resources
from pathlib import Path

import torch

from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.fitness.probe import Probe, ProbeConfig
from hf_whittle.recipe import Recipe
from hf_whittle.run.inputs import Inputs

from .teachers import teacher_of

RUNS = Path(__file__).parent / "runs" / "demo"
CALIBRATION_BLOCKS = 384
DEEP_TEACHER = ("--hidden_size", "96", "--num_hidden_layers", "10", "--num_attention_heads", "6", "--max_steps", "1600")


@cache
def run_of(teacher: str) -> Inputs:
    """The demo with its own teacher, `wide`, or with one of 96 channels and 10 layers, `deep`, trained on its text."""
    demo = Path(str(resources.files("hf_whittle"))) / "demo"
    folder = str(demo / "teacher")
    if teacher == "deep":
        folder = teacher_of(RUNS / "teacher", *DEEP_TEACHER, "--warmup_steps", "100")
    return Inputs(Recipe.load(demo / "recipe.yaml", teacher=folder, output_dir=str(RUNS / f"demo-{teacher}")))


@cache
def healing_of(teacher: str) -> HealedPerplexity:
    """Healed perplexity on the search's text, with moments of 98,304 tokens of training text."""
    run = run_of(teacher)
    return HealedPerplexity(
        run.supernet, run.blocks["search"], run.blocks["train"].shuffle(seed=0).select(range(CALIBRATION_BLOCKS))
    )


def training(teacher: str, start: str, config: ProbeConfig, kind: type[Probe] = Probe) -> Probe:
    """A training on text in an order of the seed, judged on the test text."""
    run = run_of(teacher)
    order = torch.randperm(len(run.blocks["train"]), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return kind(
        run.supernet,
        run.blocks["train"].select(order[: config.steps * config.batch_size]),
        run.blocks["test"],
        config,
        healing=healing_of(teacher) if start == "healed" else None,
    )
