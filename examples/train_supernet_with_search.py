# /// script
# dependencies = ["hf_whittle"]
# ///
"""Train a super-network together with its subnets, and search it at every checkpoint.

Run it offline in a few minutes on a CPU, with the bundled teacher and the Python standard library:

    python examples/train_supernet_with_search.py

Run it with a checkpoint from the Hub and your own text:

    python examples/train_supernet_with_search.py --supernet EleutherAI/pythia-410m --files "texts/**/*.txt" \
        --sizes 125e6 160e6 250e6 --block_size 1024 --output_dir trained --max_steps 2000 --save_steps 500

`--strategy` names the subnets that a step trains: sandwich, random, random-linear, ats or standard. The callback works
with any `Trainer`. The training is the same with and without it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    ParameterBin,
    SubnetSearchCallback,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
    save_student,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    supernet: str = field(default=TEACHER, metadata={"help": "Checkpoint to train as a super-network."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    sizes: list[float] = field(
        default_factory=lambda: [0.6e6, 0.85e6], metadata={"help": "Parameters of the students, to within 5%."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    generations: int = field(default=1, metadata={"help": "Generations of each search."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, SupernetConfig))
    parser.set_defaults(
        output_dir="trained", max_steps=40, learning_rate=5e-4, report_to="none", logging_steps=10, save_steps=20,
        eval_strategy="steps", eval_steps=20, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    script, args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.supernet)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    blocks = {name: pack_documents(split, tokenizer, script.block_size) for name, split in splits.items()}

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.supernet, dtype=torch.float32)
    bins = [ParameterBin(0.95 * size, 1.05 * size) for size in script.sizes]
    search = SubnetSearchCallback(
        bins,
        blocks["search"].select(range(min(16, len(blocks["search"])))),
        config=AdditiveSearchConfig(generations=script.generations),
        when="save",  # into the folder of each checkpoint
    )
    trainer = SupernetTrainer(
        model=supernet,
        args=args,
        bin=bins,  # trains the full network and subnets of these sizes
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"].select(range(min(64, len(blocks["test"])))),
        processing_class=tokenizer,
        callbacks=[search],
    )
    search.trainer = trainer  # logs the results
    trainer.train()
    trainer.save_model()  # the super-network, as a stock model

    if trainer.is_world_process_zero():
        for index, size in enumerate(script.sizes):
            in_bin = search.result.in_bin(index)
            student = extract_subnet(supernet, in_bin.best)
            save_student(student, Path(args.output_dir) / f"{size:.0f}", search_result=in_bin, tokenizer=tokenizer)
            print(f"{student.num_parameters():,} parameters: perplexity {in_bin.best_evaluation.fitness:.1f}")


if __name__ == "__main__":
    main()
