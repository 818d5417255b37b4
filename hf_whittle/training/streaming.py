"""StreamingTrainer: a `Trainer` that resumes a `BlockStream` at the block after a checkpoint, without reading again."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..data.streams import BlockStream
from ..errors import DataError
from ..files.text import read_json
from .careful import CarefulTrainer

_PLACE = "BlockStream"  # in the state of the trainer, beside the states of callbacks


class StreamingTrainer(CarefulTrainer):
    """A `Trainer` whose checkpoints hold the place in a `BlockStream`, if it trains on one.

    Resuming at this place gives the batches of a training that was not interrupted, on any number of processes. Each
    process reads the whole stream and keeps its own part of every batch; with `dispatch_batches` of
    `accelerator_config`, the first one reads for all, and dropout differs after resuming.

    Raises:
        DataError: if the arguments would have the stream read otherwise.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        is_streamed = isinstance(kwargs.get("train_dataset"), BlockStream)
        if is_streamed:
            settings: Any = kwargs["args"]
            check_streaming(settings)
            if settings.accelerator_config.dispatch_batches is None:
                settings.accelerator_config.dispatch_batches = False  # every process reads the stream
        super().__init__(*args, **kwargs)
        if is_streamed:
            self.add_callback(_AfterSteps(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does."""
        stream, before = self.train_dataset, self.args.ignore_data_skip
        if not isinstance(stream, BlockStream):
            return super().train(resume_from_checkpoint, *args, **kwargs)
        is_known = resume_from_checkpoint and not isinstance(resume_from_checkpoint, bool)
        place = _place_in(str(resume_from_checkpoint)) if is_known else None
        stream.begin(self.args.seed if self.args.data_seed is None else self.args.data_seed, place)
        self.args.ignore_data_skip = place is not None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = before

    def get_train_dataloader(self) -> Any:
        """Return the training `DataLoader`; that of a stream draws no random numbers, so resuming changes none."""
        stream: Any = self.train_dataset
        if not isinstance(stream, BlockStream):
            return super().get_train_dataloader()
        loader: Any = torch.utils.data.DataLoader(
            stream,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        stream: Any = self.train_dataset
        if isinstance(stream, BlockStream):
            states: Any = self.state.stateful_callbacks
            states[_PLACE] = stream.place_of(self._blocks_trained(self.state))
        super()._save_checkpoint(model, trial)

    def _blocks_trained(self, state: TrainerState) -> int:
        return state.global_step * self.get_total_train_batch_size(self.args)


class _AfterSteps(TrainerCallback):
    """Counts epochs as a training that was not interrupted does, and lets the stream forget what was trained."""

    def __init__(self, trainer: StreamingTrainer):
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stream: Any = self._trainer.train_dataset
        state.epoch = state.global_step / state.max_steps
        stream.forget(self._trainer._blocks_trained(state))


def check_streaming(args: Any) -> None:
    """Raise `DataError` if arguments of a training would have a stream read in another way than it can be."""
    if args.dataloader_num_workers:
        raise DataError(
            f"a stream reads ahead by itself, got dataloader_num_workers={args.dataloader_num_workers}; set it to 0"
        )
    for name, is_set in (
        ("split_batches of accelerator_config", args.accelerator_config.split_batches),
        ("auto_find_batch_size", args.auto_find_batch_size),
    ):
        if is_set:
            raise DataError(f"a stream is read in batches of per_device_train_batch_size blocks; leave {name} out")


def _place_in(checkpoint: str) -> dict[str, Any] | None:
    """The place in a stream that a checkpoint holds; without one, `Trainer` reads the stream from its start."""
    states: dict[str, Any] = read_json(Path(checkpoint) / TRAINER_STATE_NAME).get("stateful_callbacks") or {}
    return states.get(_PLACE)
