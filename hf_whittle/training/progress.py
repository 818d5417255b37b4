"""TrainingBar: a progress bar for a training, with the latest loss and perplexity, and one for each evaluation."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..progress import progress_bar


class TrainingBar(TrainerCallback):
    """Shows steps, the last training loss and the last perplexity in one bar, instead of a line for each log.

    Each evaluation has a bar of its own, which goes when it ends.

    Args:
        name (`str`): label of the bar.
    """

    def __init__(self, name: str):
        self._name = name
        self._bar: Any = None
        self._evaluation: Any = None
        self._latest: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._bar = progress_bar(total=state.max_steps, initial=state.global_step, desc=self._name, unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            name = f"evaluation of {self._name}"
            self._evaluation = progress_bar(desc=name, total=total, unit="batch", leave=False)
        self._evaluation.update()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

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
