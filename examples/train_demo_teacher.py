# /// script
# dependencies = ["hf_whittle", "transformers", "datasets"]
# ///
"""Train the teacher of `hf-whittle demo`, a small GPT-NeoX, from random initialization.

    python examples/train_demo_teacher.py --output_dir teacher

The text is the standard library of the running interpreter without the modules that the demo holds out. Training takes
about an hour and a half on one CPU thread. The log of the bundled teacher is
`hf_whittle/demo/teacher/training_log.json`.
"""

import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_whittle.data import collate_blocks, pack_documents, split_documents
from hf_whittle.data.standard_library import HELD_OUT, standard_library


@dataclass
class TeacherArguments:
    vocab_size: int = field(default=2048, metadata={"help": "Vocabulary size of the byte-level BPE tokenizer."})
    hidden_size: int = field(default=128, metadata={"help": "Channels of the hidden states."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=8, metadata={"help": "Attention heads."})
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})


DEFAULTS = {
    "output_dir": "teacher",
    "max_steps": 4000,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "logging_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 500,
    "save_total_limit": 1,
    "save_only_model": True,
    "report_to": "none",
}


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def main() -> None:
    parser = HfArgumentParser((TeacherArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS, use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available())
    shape, args = parser.parse_args_into_dataclasses()
    transformers.set_seed(args.seed)
    splits = split_documents(standard_library(), HELD_OUT, key="name")
    tokenizer = train_tokenizer(list(splits["train"]["text"]), shape.vocab_size)
    tokenizer.model_max_length = shape.block_size
    blocks = {name: pack_documents(split, tokenizer, shape.block_size) for name, split in splits.items()}
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=4 * shape.hidden_size,
            max_position_embeddings=shape.block_size,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["search"],
        data_collator=collate_blocks,
    )
    trainer.train()

    teacher = trainer.accelerator.unwrap_model(trainer.model).to(torch.float16)
    folder = Path(args.output_dir) / "final"
    teacher.config.use_cache = True  # Trainer sets it to False
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    teacher.float()  # evaluate the saved weights, which were rounded to half precision
    losses = {name: trainer.evaluate(blocks[name])["eval_loss"] for name in HELD_OUT}
    log = {
        "parameters": teacher.num_parameters(),
        "tokens": args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * shape.block_size,
        "perplexity": {name: math.exp(loss) for name, loss in losses.items()},
        "blocks": {name: len(split) for name, split in blocks.items()},
        "seconds": trainer.state.log_history[-len(HELD_OUT) - 1].get("train_runtime"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "history": [
            {k: v for k, v in row.items() if k in ("step", "loss", "eval_loss", "learning_rate")}
            for row in trainer.state.log_history
        ],
    }
    (folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    trainer.end()  # close trackers and, under a launcher, the process group


if __name__ == "__main__":
    main()
