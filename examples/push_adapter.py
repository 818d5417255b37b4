# /// script
# dependencies = ["hf_whittle", "peft"]
# ///
"""Train adapters of a student that is on the Hub already, and publish them alone.

Try it offline in a minute or two on a CPU. A student of the bundled teacher takes the place of one on the Hub, and
nothing is sent:

    python examples/push_adapter.py

Train adapters of a student on the Hub with your own text, and publish them:

    python examples/push_adapter.py --student me/pythia-160m-whittled --teacher EleutherAI/pythia-410m \
        --files "code/**/*.py" --block_size 1024 --output_dir adapters --max_steps 1000 \
        --push_to_hub --hub_model_id me/pythia-160m-whittled-python

Adapters name the student they belong to, so that student has to be on the Hub first: `hf-whittle push FOLDER NAME`.
`AutoPeftModelForCausalLM.from_pretrained(NAME)` then loads both.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    ParameterBin,
    SearchSpace,
    extract_subnet,
    push_subnet_to_hub,
    save_student,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    student: str | None = field(default=None, metadata={"help": "Student on the Hub; by default one is made."})
    teacher: str = field(default=TEACHER, metadata={"help": "Checkpoint to learn from."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapters, on all matrices of the layers."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, DistillationConfig))
    parser.set_defaults(
        output_dir="adapters", max_steps=30, learning_rate=2e-3, report_to="none", logging_steps=10, save_strategy="no",
        hub_strategy="end", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    script, args = parser.parse_args_into_dataclasses()
    if args.push_to_hub and script.student is None:
        parser.error("--push_to_hub needs the --student on the Hub that the adapters belong to")

    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"test": 0.05}, key="name" if script.files is None else None)
    blocks = {name: pack_documents(split, tokenizer, script.block_size) for name, split in splits.items()}

    if script.student is None:
        teacher = AutoModelForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
        most = teacher.num_parameters()
        space = SearchSpace.from_config(teacher.config, stock_only=True)
        subnet = space.sample(random.Random(0), ParameterBin(0.7 * most, 0.8 * most))
        calibration = blocks["train"].select(range(min(96, len(blocks["train"]))))
        student = extract_subnet(teacher, subnet, heal=True, calibration_dataset=calibration)
    else:
        student = AutoModelForCausalLM.from_pretrained(script.student, dtype=torch.float32)

    trainer = DistillationTrainer(
        model=student,
        teacher_model=script.teacher,
        args=args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"].select(range(min(64, len(blocks["test"])))),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=script.lora_rank, lora_alpha=script.lora_rank, task_type="CAUSAL_LM"),
    )
    before = trainer.evaluate()["eval_perplexity"]
    trainer.train()
    after = trainer.evaluate()["eval_perplexity"]

    if trainer.is_world_process_zero():
        print(f"perplexity {before:.1f}, then {after:.1f}")
        save_student(trainer.model, args.output_dir, tokenizer=tokenizer)
        for path in sorted(Path(args.output_dir).glob("adapter_*")):
            print(f"{path}: {path.stat().st_size:,} bytes")
        if args.push_to_hub:
            print(push_subnet_to_hub(args.output_dir, trainer.hub_model_id).commit_url)
    trainer.end()  # close trackers and, under a launcher, the process group


if __name__ == "__main__":
    main()
