# /// script
# dependencies = ["hf_whittle"]
# ///
"""Run the teacher over the text once, and distil students of several sizes from what is stored.

Run it offline in a few minutes on a CPU, with the bundled teacher and the Python standard library:

    python examples/distil_with_stored_logits.py

Run it with a checkpoint from the Hub and your own text:

    python examples/distil_with_stored_logits.py --teacher EleutherAI/pythia-410m --files "texts/**/*.txt" \
        --sizes 125e6 250e6 --block_size 1024 --train_blocks 16000 --output_dir students --max_steps 2000

A store holds samples of the teacher's distribution, 26 bytes a token, or its `top-k` entries. It is written to
OUTPUT_DIR/targets, and read again by the next run. No teacher is in memory while a student trains.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    DistillationConfig,
    DistillationTrainer,
    ParameterBin,
    SearchSpace,
    extract_subnet,
    save_student,
    search_subnets,
    store_targets,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    teacher: str = field(
        default=TEACHER, metadata={"help": "Checkpoint to extract the students from and to learn from."}
    )
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    sizes: list[float] = field(
        default_factory=lambda: [0.6e6, 0.85e6], metadata={"help": "Parameters of the students, to within 5%."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    train_blocks: int = field(default=400, metadata={"help": "Blocks that the teacher reads and students learn."})
    generations: int = field(default=2, metadata={"help": "Generations of the search for each student."})
    kind: str = field(default="sample", metadata={"help": "Targets to store: sample or top-k."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, DistillationConfig))
    parser.set_defaults(
        output_dir="students", max_steps=50, learning_rate=2e-3, report_to="none", logging_steps=10, save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    script, args = parser.parse_args_into_dataclasses()
    output_dir = Path(args.output_dir)

    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    blocks = {name: pack_documents(split, tokenizer, script.block_size) for name, split in splits.items()}
    training = blocks["train"].shuffle(seed=0).select(range(min(script.train_blocks, len(blocks["train"]))))

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
    store = store_targets(
        supernet, training, output_dir / "targets", kind=script.kind, temperature=args.temperature, tokenizer=tokenizer
    )
    result = search_subnets(
        supernet,
        SearchSpace.from_config(supernet.config, layer_wise=True),
        bin=[ParameterBin(0.95 * size, 1.05 * size) for size in script.sizes],
        eval_dataset=blocks["search"].select(range(min(16, len(blocks["search"])))),
        config=AdditiveSearchConfig(generations=script.generations),
        output_dir=output_dir,
    )
    students = [extract_subnet(supernet, result.in_bin(index).best) for index in range(len(script.sizes))]
    del supernet

    for index, (size, student) in enumerate(zip(script.sizes, students, strict=True)):
        folder = output_dir / f"{size:.0f}"
        trainer = DistillationTrainer(
            model=student,
            teacher_model=store,
            args=replace(args, output_dir=str(folder)),
            train_dataset=training,
            eval_dataset=blocks["test"].select(range(min(64, len(blocks["test"])))),
            processing_class=tokenizer,
        )
        before = trainer.evaluate()["eval_perplexity"]
        trainer.train()
        after = trainer.evaluate()["eval_perplexity"]
        if trainer.is_world_process_zero():
            print(f"{student.num_parameters():,} parameters: perplexity {before:.1f}, then {after:.1f}")
            save_student(student, folder, search_result=result.in_bin(index), tokenizer=tokenizer)
    trainer.end()  # close trackers and, under a launcher, the process group


if __name__ == "__main__":
    main()
