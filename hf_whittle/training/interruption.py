"""SaveOnInterrupt: at Ctrl-C, finish the step, save a checkpoint, then stop training."""

import signal
import threading
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..processes import any_process, is_first

logger = logging.get_logger(__name__)


class SaveOnInterrupt(TrainerCallback):
    """Ends training with a checkpoint at the first Ctrl-C, in whichever process, and at once at the second.

    Attributes:
        interrupted (`bool`): whether training was interrupted.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.interrupted = any_process(self.interrupted)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True
        self.restore()
        if is_first():
            logger.warning("Interrupted: saving a checkpoint after this step. Press Ctrl-C again to stop at once.")

    def restore(self) -> None:
        """Restore the handler of Ctrl-C; call this after `trainer.train()`, which skips `on_train_end` if it raises."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
