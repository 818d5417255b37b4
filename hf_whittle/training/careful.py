"""CarefulTrainer: a `Trainer` that checks early whether it can save, and locks its output folder."""

import contextlib
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from ..files.disk import disk_errors
from ..models.portable import check_generation_config
from ..processes import lock_in_first


class CarefulTrainer(Trainer):
    """A `Trainer` that raises errors of saving before it trains, and locks its output folder while it does.

    Raises:
        OutputError: if the output folder cannot be written, another process is writing it, or the disk is full.
        CheckpointError: at the start of training, if the model's generation configuration cannot be saved.
        ValueError: if one process has several GPUs.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        folder = getattr(kwargs.get("args"), "output_dir", None)
        with disk_errors(folder or "the output folder"):
            super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{type(self).__name__} needs a process for each of the {self.args.n_gpu} GPUs, since DataParallel "
                "copies the model at each step, without an active subnet or a loss in its output layer; use torchrun "
                "or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU"
            )

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as `Trainer` does."""
        check_generation_config(getattr(self.accelerator.unwrap_model(self.model), "generation_config", None))
        with self._own_folder(trial), disk_errors(str(self.args.output_dir)):
            return super().train(resume_from_checkpoint, trial, *args, **kwargs)

    @property
    def _writes(self) -> bool:
        return self.args.save_strategy != SaveStrategy.NO

    def _own_folder(self, trial: Any) -> contextlib.AbstractContextManager[None]:
        """Lock of the output folder, or of a trial's folder; all processes enter it together."""
        return lock_in_first(self._get_output_dir(trial)) if self._writes else contextlib.nullcontext()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as `Trainer` does."""
        with disk_errors(output_dir or str(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)
