"""WholeCheckpoints: a `Trainer` whose checkpoints appear whole or not at all; search for the last whole one."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..compat.transformers import sorted_checkpoints
from ..errors import CheckpointError
from ..files.atomic import put_in_place, remove_folder, remove_leftovers
from ..files.disk import disk_errors
from ..files.text import read_json
from ..processes import sees_folder_of_first
from .streaming import StreamingTrainer

logger = logging.get_logger(__name__)

_WRITING = "_partial-checkpoints"
_WEIGHTS = ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp*", "global_step*", "*/adapter_model.*")
"""Weights of `Trainer`, FSDP, DeepSpeed, and named adapters."""


class WholeCheckpoints(StreamingTrainer):
    """A `Trainer` that may be killed at any moment: a folder named as a checkpoint holds all of it.

    All processes write a checkpoint into a temporary folder, and once it is on disk the first one renames it. Before a
    checkpoint is removed, it is renamed too. `train(resume_from_checkpoint=True)` takes the last whole checkpoint, and
    skips incomplete ones, which a plain `Trainer` leaves when it is killed.
    """

    _is_saving = False
    _has_own_disk = False

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as `Trainer` does.

        Raises:
            CheckpointError: if the checkpoint given is incomplete.
        """
        with self._own_folder(trial):
            if self._writes:
                self._has_own_disk = not sees_folder_of_first(str(self.args.output_dir))
                self._in_turn(lambda: remove_leftovers(self._get_output_dir(trial)))
            if resume_from_checkpoint is True:
                resume_from_checkpoint = self._last_checkpoint() or True
            elif resume_from_checkpoint:
                lacks = _lacks(Path(resume_from_checkpoint))
                if lacks is not None:
                    raise CheckpointError(
                        f"the checkpoint {resume_from_checkpoint} is incomplete: {lacks}; resume_from_checkpoint=True "
                        "takes the last whole checkpoint of output_dir"
                    )
            return super().train(resume_from_checkpoint, trial, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Take the steps of an epoch, none if the checkpoint that training goes on from is of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _WRITING) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        writing, checkpoint = Path(folder, _WRITING, name), Path(folder, name)
        self._in_turn(lambda: shutil.rmtree(writing.parent, ignore_errors=True))
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
        self._name_best(folder)
        if self.args.should_save:
            self.state.save_to_json(str(writing / TRAINER_STATE_NAME))

        def rename() -> None:
            with disk_errors(checkpoint):
                if writing.exists():  # the disk of this machine has files of it
                    put_in_place(writing, checkpoint, replace=True)
                shutil.rmtree(writing.parent, ignore_errors=True)

        self._in_turn(rename)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            self._rotate(folder)

    def _name_best(self, folder: str) -> None:
        """Set the final name of the best checkpoint; `Trainer` looks for it in the temporary folder."""
        step = self.state.best_global_step
        best = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if step and (step == self.state.global_step or os.path.exists(best)):
            self.state.best_model_checkpoint = best

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _rotate(self, folder: str) -> None:
        """Remove the oldest checkpoints beyond `save_total_limit`, as `rotate_checkpoints` does."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        checkpoints = sorted_checkpoints(folder, by_time=True)
        kept = {checkpoints[-1], str(Path(self.state.best_model_checkpoint or checkpoints[-1]))}
        removable = [checkpoint for checkpoint in checkpoints if checkpoint not in kept]
        for checkpoint in removable[: max(0, len(checkpoints) - max(limit, len(kept)))]:
            remove_folder(checkpoint)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            for checkpoint in sorted_checkpoints(self._get_output_dir(trial)):
                if not os.path.samefile(checkpoint, best):
                    remove_folder(checkpoint)
        return super()._finalize_training(trial, *args, **kwargs)

    def _in_turn(self, work: Callable[[], None]) -> None:
        """Work on files in the first process, then in the first process of each other machine that has its own disk.

        All processes wait until that is done.
        """
        is_first, is_local_first = self.args.process_index == 0, self.args.local_process_index == 0
        self.accelerator.wait_for_everyone()
        for is_turn in (is_first, is_local_first and not is_first and self._has_own_disk):
            if is_turn:
                work()
            self.accelerator.wait_for_everyone()

    def _last_checkpoint(self) -> str | None:
        """The newest checkpoint that is whole on the disks of all processes."""
        folder = str(self.args.output_dir)
        if self.args.world_size == 1:
            return last_checkpoint(folder)
        found = gather_object([[path.name for path in whole_checkpoints(folder)]])
        return next((os.path.join(folder, name) for name in found[0] if all(name in others for others in found)), None)


def whole_checkpoints(folder: str | Path) -> Iterator[Path]:
    """Yield the whole checkpoints of a folder, the newest first."""
    found = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in Path(folder).glob("*"))
    for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True):
        lacks = _lacks(path)
        if lacks is None:
            yield path
        else:
            logger.warning(f"Skipped {path}, which is incomplete, as its writing or removal was interrupted: {lacks}")


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint of a folder, if there is one."""
    return next(map(str, whole_checkpoints(folder)), None)


def _lacks(checkpoint: Path) -> str | None:
    """Missing or truncated part of a checkpoint; `None` if it is whole."""
    try:
        read_json(checkpoint / TRAINER_STATE_NAME)  # the Trainer writes it last
    except (OSError, ValueError):
        return f"{TRAINER_STATE_NAME} is missing or truncated"
    if not any(any(checkpoint.glob(pattern)) for pattern in _WEIGHTS):
        return "there are no weights"
    for path in checkpoint.glob("*.safetensors"):
        try:
            safe_open(path, framework="pt")  # compares the header with the size
        except (OSError, SafetensorError) as error:
            return f"{path.name} is truncated ({error})"
    for index in checkpoint.glob("*.index.json"):
        try:
            missing = {name for name in read_json(index)["weight_map"].values() if not (checkpoint / name).is_file()}
        except ValueError:
            return f"{index.name} is truncated"
        if missing:
            return f"{min(missing)} is missing"
    return None
