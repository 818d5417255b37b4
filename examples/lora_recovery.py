# /// script
# dependencies = ["hf_whittle", "peft"]
# ///
"""Recover a student with LoRA adapters instead of training all its weights, and merge them into a stock model.

Run it offline in a few minutes on a CPU, with the bundled teacher and the Python standard library:

    python examples/lora_recovery.py

Run it with a checkpoint from the Hub and your own text:

    python examples/lora_recovery.py --teacher EleutherAI/pythia-1b --files "texts/**/*.txt" --low 700e6 --high 750e6 \
        --block_size 1024 --lora_rank 16 --output_dir student --max_steps 1000 --learning_rate 1e-4

The student loads with plain `AutoModelForCausalLM`, without `peft` or `hf_whittle`. push_adapter.py publishes adapters
that stay apart.
"""

from dataclasses import dataclass, field

import torch
from peft import LoraConfig
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
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    teacher: str = field(
        default=TEACHER, metadata={"help": "Checkpoint to extract the student from and to learn from."}
    )
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    low: float = field(default=1.1e6, metadata={"help": "Fewest parameters of the student."})
    high: float = field(default=1.2e6, metadata={"help": "Most parameters of the student."})
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    generations: int = field(default=2, metadata={"help": "Generations of the search."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters, on all matrices of the layers."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, DistillationConfig))
    parser.set_defaults(
        output_dir="student", max_steps=50, learning_rate=2e-3, report_to="none", logging_steps=10, save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    script, args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    blocks = {name: pack_documents(split, tokenizer, script.block_size) for name, split in splits.items()}
    calibration = blocks["train"].shuffle(seed=0).select(range(min(96, len(blocks["train"]))))

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
    result = search_subnets(
        supernet,
        SearchSpace.from_config(supernet.config, stock_only=True),
        bin=ParameterBin(script.low, script.high),
        eval_dataset=blocks["search"].select(range(min(16, len(blocks["search"])))),
        config=AdditiveSearchConfig(generations=script.generations),
        output_dir=args.output_dir,
    )
    student = extract_subnet(supernet, result.best, heal=True, calibration_dataset=calibration)

    trainer = DistillationTrainer(
        model=student,
        teacher_model=supernet,
        args=args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"].select(range(min(64, len(blocks["test"])))),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=script.lora_rank, lora_alpha=script.lora_rank),
    )
    before = trainer.evaluate()["eval_perplexity"]
    trainer.train()
    after = trainer.evaluate()["eval_perplexity"]
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)

    student = trainer.merge_adapters()
    if trainer.is_world_process_zero():
        print(
            f"{trained:,} of {student.num_parameters():,} parameters trained: perplexity {before:.1f}, then {after:.1f}"
        )
        save_student(student, args.output_dir, search_result=result, tokenizer=tokenizer)
    trainer.end()  # close trackers and, under a launcher, the process group


if __name__ == "__main__":
    main()
