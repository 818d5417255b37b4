"""Facts of a training, left on the student for its model card."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..compat import LORA_PREFIX
from ..cost.counts import num_parameters
from ..models.architecture import has_architecture
from ..record.lineage import MAKING, Lineage
from ..record.source import checkpoint_facts
from ..record.training import training_facts


class RecordTraining(TrainerCallback):
    """Leaves what a model card says of a training in `student.results`, at every evaluation, save and at the end.

    `DistillationTrainer` has one; give it to any other `Trainer` that trains a student: `Trainer(callbacks=[...])`.

    Args:
        teacher (`PreTrainedModel`, *optional*): what the student learns from.
    """

    def __init__(self, teacher: PreTrainedModel | None = None):
        self._is_whole, self._has_ended = True, False
        self._block_size: int | None = None
        self._adapters: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}
        self._facts_of_teacher: dict[str, Any] | None = None
        if teacher is not None:
            self.set_teacher(teacher)

    def set_teacher(self, teacher: Any) -> None:
        """Note what the student learns from."""
        self._facts_of_teacher = {**checkpoint_facts(teacher.config), "parameters": _parameters(teacher)}

    def set_targets(self, targets: str) -> None:
        """Note what of a teacher's distribution the student learns from, where that is not all of it."""
        self._targets = {"targets": targets}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_whole, self._has_ended = state.global_step == 0, False
        student = _student(kwargs["model"])
        Lineage.of(student).attach(student)
        self._block_size = _block_size(kwargs["train_dataloader"])
        self._adapters = _adapters(kwargs["model"])  # once they are merged, nothing tells of them

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step:
            self.record(args, state, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.record(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._has_ended = True
        self.record(args, state, kwargs["model"])

    def record(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Leave what is known now."""
        student = _student(model)
        facts = training_facts(args, state, is_whole=self._is_whole, has_ended=self._has_ended)
        sections = {name: known for name, known in Lineage.of(student).results.items() if name in MAKING}
        sections["student"] = {"parameters": _parameters(student), **facts, **self._targets, **self._adapters}
        sections["environment"] = facts["environment"]
        if self._facts_of_teacher is not None:
            sections["teacher"] = self._facts_of_teacher
        if self._block_size is not None:
            sections["data"] = {"block_size": self._block_size}
        student.results = sections


def _student(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _block_size(dataloader: Any) -> int | None:
    """Tokens of a block; `None` if rows differ, of a stream, and of data of another form."""
    try:
        dataset = dataloader.dataset
        rows = [dataset[row] for row in (0, len(dataset) // 2, len(dataset) - 1)]
        (size,) = {len(row["input_ids"]) for row in rows if isinstance(row, Mapping)}
    except (AttributeError, TypeError, ValueError, LookupError, NotImplementedError):
        return None
    return size


def _parameters(student: Any) -> int:
    """Of the student without adapters; from its configuration, for its weights may be sharded."""
    config = getattr(student, "config", None)
    if config is not None and has_architecture(config):
        return num_parameters(config)
    return sum(p.numel() for name, p in student.named_parameters() if LORA_PREFIX not in name)


def _adapters(model: Any) -> dict[str, Any]:
    """Of adapters that are trained: their kind, rank and size."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return {}
    config = next(iter(configs.values()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    facts = {"type": "LoRA" if kind == "LORA" else kind, "parameters": trained}
    if hasattr(config, "r"):
        facts |= {"r": config.r, "alpha": config.lora_alpha}
    return {"adapters": facts}
