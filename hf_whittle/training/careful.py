"""A `Trainer` that finds out first whether it can save, and keeps its folder to itself."""

import contextlib
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from ..checkpoint import check_generation_config
from ..disk import disk_errors
from ..locks import folder_lock


class CarefulTrainer(Trainer):
    """A `Trainer` that fails early where it would fail late.

    Raises:
        OutputError: if the output folder cannot be written or another process is writing it, or the disk is full.
        CheckpointError: when training begins, if the model's generation configuration is one that cannot be saved.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        folder = getattr(kwargs.get("args"), "output_dir", None)
        with disk_errors(folder or "the output folder"):
            super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does."""
        check_generation_config(getattr(self.accelerator.unwrap_model(self.model), "generation_config", None))
        with self._own_folder(), disk_errors(str(self.args.output_dir)):
            return super().train(*args, **kwargs)

    def _own_folder(self) -> contextlib.AbstractContextManager[None]:
        writes = self.is_world_process_zero() and self.args.save_strategy != SaveStrategy.NO
        return folder_lock(str(self.args.output_dir)) if writes else contextlib.nullcontext()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as `Trainer` does."""
        with disk_errors(output_dir or str(self.args.output_dir)):
            super().save_model(output_dir, _internal_call)
