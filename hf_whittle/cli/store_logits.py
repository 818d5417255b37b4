"""`hf-whittle store-logits`: run a recipe's teacher over its training text once, and store its logits."""

import argparse
from typing import Any

from .output import Outcome, add_json

HELP = "Store the logits of a recipe's teacher on its training text, for distillation without the teacher."
EXAMPLE = "hf-whittle store-logits recipe.yaml --output-dir store --draws 12"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; its teacher, data and training.temperature are used")
    parser.add_argument("--output-dir", required=True, help="folder of the store")
    parser.add_argument(
        "--kind",
        choices=("sample", "top-k"),
        default="sample",
        help="sampled tokens, an unbiased estimate, or the likeliest tokens (default: sample)",
    )
    parser.add_argument("--draws", type=int, default=12, help="tokens sampled at each position (default: 12)")
    parser.add_argument("--k", type=int, default=1024, help="likeliest tokens kept (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="blocks the teacher reads at a time (default: as make 4,096 tokens, or 16,384 on a GPU)",
    )
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..distillation.store.writer import check_store_arguments, store_targets
    from ..errors import RecipeError
    from ..processes import first_on_each_machine, in_first, lock_in_first
    from ..recipe.recipe import Recipe
    from ..run.inputs import Inputs, load_config
    from ..run.preflight import check_loading
    from ..run.vocabularies import check_vocab_sizes, vocabulary_of_store

    logging.disable_progress_bar()
    with lock_in_first(options.output_dir):
        inputs = Inputs(Recipe.load(options.recipe, **{**options.keys, "output_dir": options.output_dir}))
        if inputs.recipe.data.streaming:
            raise RecipeError("data.streaming: a store holds targets of blocks on disk; set streaming to false")
        if inputs.recipe.space.vocab_sizes is not None:
            raise RecipeError(
                "space.vocab_sizes: a store has targets for the tokens of one vocabulary, which the search is to "
                "choose; search first, extract the student, and give it as student in place of bin and space"
            )
        arguments: dict[str, Any] = {
            name: getattr(options, name) for name in ("kind", "draws", "k", "seed", "batch_size")
        }
        training = inputs.recipe.training_arguments(options.output_dir)
        arguments["temperature"] = training.temperature
        check_store_arguments(**arguments)
        in_first(lambda: check_loading(inputs.recipe))
        in_first(lambda: load_config(inputs.recipe.teacher))  # raises if it has no table
        in_first(lambda: check_vocab_sizes(inputs))
        vocabulary = vocabulary_of_store(inputs)
        first_on_each_machine(lambda: inputs.blocks)  # whose tokens the others find in the cache of datasets
        teacher, blocks = inputs.load_teacher(), inputs.blocks["train"]
        arguments |= {"vocabulary": vocabulary, "dropped_tokens": training.dropped_tokens}
        store = store_targets(teacher, blocks, options.output_dir, tokenizer=inputs.tokenizer, **arguments)
    facts = {"output_dir": options.output_dir, "tokens": store.tokens, "bytes_per_token": store.bytes_per_token}
    text = f"{store.tokens:,} tokens, {store.bytes_per_token} bytes each, are in {options.output_dir}"
    return Outcome(facts, text)
