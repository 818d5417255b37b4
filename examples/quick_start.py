# /// script
# dependencies = ["hf_whittle"]
# ///
"""Search, extract, heal, distil and publish with the Python API, step by step.

Run it offline in a few minutes on a CPU, with the bundled teacher and the Python standard library:

    python examples/quick_start.py

Run it with a checkpoint from the Hub and your own text:

    python examples/quick_start.py --teacher EleutherAI/pythia-410m --files "texts/**/*.txt" \
        --low 150e6 --high 165e6 --block_size 1024 --output_dir student --max_steps 2000 \
        --push_to_hub --hub_model_id me/pythia-160m-whittled

On several GPUs, start the same script by a launcher. The processes share the candidates of the search and the batches
of the training; here on two CPU processes:

    torchrun --nproc-per-node 2 examples/quick_start.py --use_cpu
    accelerate launch --multi_gpu --num_processes 4 examples/quick_start.py --teacher EleutherAI/pythia-410m ...
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    DistillationConfig,
    DistillationTrainer,
    HealedPerplexity,
    ParameterBin,
    SearchSpace,
    extract_subnet,
    push_subnet_to_hub,
    save_student,
    search_subnets,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    teacher: str = field(
        default=TEACHER,
        metadata={"help": "Checkpoint to extract the student from and to learn from."},
    )
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    low: float = field(default=0.80e6, metadata={"help": "Fewest parameters of the student."})
    high: float = field(default=0.88e6, metadata={"help": "Most parameters of the student."})
    granularity: str = field(default="coarse", metadata={"help": "Granularity of the search space: coarse or fine."})
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    generations: int = field(default=5, metadata={"help": "Generations of the search."})


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, DistillationConfig))
    parser.set_defaults(
        output_dir="student", max_steps=50, learning_rate=2e-3, report_to="none", logging_steps=10, save_strategy="no",
        eval_strategy="steps", eval_steps=0.1, eval_on_start=True, hub_strategy="end",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    script, args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library" if script.files is None else None, script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    blocks = {name: pack_documents(split, tokenizer, script.block_size) for name, split in splits.items()}

    held_out = blocks["search"].select(range(min(16, len(blocks["search"]))))
    calibration = blocks["train"].shuffle(seed=0).select(range(min(96, len(blocks["train"]))))

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
    result = search_subnets(
        supernet,
        SearchSpace.from_config(supernet.config, granularity=script.granularity, layer_wise=True),
        bin=ParameterBin(script.low, script.high),
        fitness=HealedPerplexity(supernet, held_out, calibration),
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
    )
    trainer.train()
    if trainer.is_world_process_zero():
        save_student(student, args.output_dir, search_result=result, tokenizer=tokenizer)
        if args.push_to_hub:
            push_subnet_to_hub(student, trainer.hub_model_id, search_result=result, tokenizer=tokenizer)
    trainer.end()  # close trackers and, under a launcher, the process group


if __name__ == "__main__":
    main()
