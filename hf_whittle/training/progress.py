"""TrainingBar: one progress bar for a training, with the latest loss and perplexity."""

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(TrainerCallback):
    """Shows steps, the last training loss and the last perplexity in one bar, instead of a line for each log.

    Args:
        name (`str`): label of the bar.
    """

    def __init__(self, name: str):
        self._name = name
        self._bar: Any = None
        self._latest: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._name, unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bar is not None:
            shown = {"loss": "loss", "eval_perplexity": "perplexity"}
            self._latest |= {shown[key]: f"{value:.4g}" for key, value in (logs or {}).items() if key in shown}
            self._bar.set_postfix(self._latest)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
