"""A small distillation on a stream of token ids; as a script for `torchrun`, on two processes.

torchrun --nproc-per-node 2 streamed_training.py FOLDER STEPS
"""

import sys

import torch
from datasets import Dataset, disable_progress_bars
from fixtures_distillation import LENGTH, VOCABULARY, make_arguments, make_model

from hf_whittle import DistillationConfig, DistillationTrainer
from hf_whittle.data import BlockStream, StreamedSource, TokenEncoder, streams
from hf_whittle.training.checkpoints import last_checkpoint

STEPS, BATCH = 10, 8
streams.WINDOW = 32


def make_stream(weights=(1.0, 2.0)):
    """A stream of documents of random ids, in which some sources end and begin again."""
    generator = torch.Generator().manual_seed(7)
    sources = []
    for weight in weights:
        lengths = torch.randint(1, 40, (60,), generator=generator).tolist()
        rows = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        documents = Dataset.from_dict({"input_ids": rows})
        encoder = TokenEncoder(VOCABULARY, eos_token_id=0)
        sources.append(StreamedSource(lambda documents=documents: documents.to_iterable_dataset(4), encoder, weight))
    return BlockStream(sources, LENGTH)


def make_trainer(folder, stop=STEPS, processes=1, **changes):
    """A trainer of ten steps that stops after `stop`; its model has dropout."""
    student = make_model(1)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = changes.get("dropout", 0.0)
    changes.pop("dropout", None)
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH // processes // 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    args = make_arguments(DistillationConfig, folder, **settings | changes)
    trainer = DistillationTrainer(student, make_model(2, layers=3), args, train_dataset=make_stream())
    trainer.stop = stop
    return trainer


def train(trainer):
    """Train on from the last checkpoint; the batches that were trained on, and the weights."""
    batches, step = [], trainer.training_step

    def watch(model, inputs, *rest):
        batches.append(inputs["input_ids"].clone())
        if trainer.state.global_step >= trainer.stop:
            raise KeyboardInterrupt
        return step(model, inputs, *rest)

    trainer.training_step = watch
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    except KeyboardInterrupt:
        batches.pop()
    return batches, trainer.accelerator.unwrap_model(trainer.model).state_dict()


def main(folder, stop):
    trainer = make_trainer(folder, int(stop), processes=2)
    batches, weights = train(trainer)
    torch.save(batches, f"{folder}/batches-{stop}-{trainer.args.process_index}.pt")
    if trainer.is_world_process_zero():
        torch.save(weights, f"{folder}/weights-{stop}.pt")


if __name__ == "__main__":
    disable_progress_bars()
    main(*sys.argv[1:])
