"""`hf-whittle store-logits`: run a recipe's teacher over its training text once, and keep what it says."""

import argparse
import os
import tempfile
from typing import Any

HELP = "Keep what a recipe's teacher says about its training text, for distillation without the teacher."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; its teacher, data and training.temperature are used")
    parser.add_argument("--output-dir", required=True, help="folder of the store")
    parser.add_argument(
        "--kind",
        choices=("sample", "top-k"),
        default="sample",
        help="sampled tokens, an unbiased estimate, or the likeliest ones (default: sample)",
    )
    parser.add_argument("--draws", type=int, default=12, help="tokens sampled at each position (default: 12)")
    parser.add_argument("--k", type=int, default=1024, help="likeliest tokens kept (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="blocks the teacher reads at a time (default: 8)")


def main(options: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..distillation.store.writer import check_store_arguments, store_targets
    from ..processes import lock_in_first
    from ..recipe.recipe import Recipe
    from ..run.stages import Run

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, lock_in_first(options.output_dir):
        run = Run(Recipe.load(options.recipe, output_dir=folder))
        arguments: dict[str, Any] = {
            name: getattr(options, name) for name in ("kind", "draws", "k", "seed", "batch_size")
        }
        arguments["temperature"] = run.recipe.training_arguments(folder).temperature
        check_store_arguments(**arguments)
        teacher, blocks = run.teacher, run.blocks["train"]
        store = store_targets(teacher, blocks, options.output_dir, tokenizer=run.tokenizer, **arguments)
    if os.environ.get("RANK", "0") == "0":
        print(f"{store.tokens:,} tokens, {store.bytes_per_token} bytes each, are in {options.output_dir}")
