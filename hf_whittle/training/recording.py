"""Facts of a training, left on the student for its model card."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..architectures.registry import has_architecture
from ..compat.others import LORA_PREFIX
from ..cost.counts import num_parameters
from ..record.data import DataFacts
from ..record.facts import AdapterFacts, TeacherFacts
from ..record.lineage import Lineage
from ..record.source import checkpoint_facts
from ..record.training import training_facts


class RecordTraining(TrainerCallback):
    """Records the facts of a training in `student.lineage`, at every evaluation, at every save and at the end.

    `DistillationTrainer` has one; give it to any other `Trainer` that trains a student: `Trainer(callbacks=[...])`.

    Args:
        teacher (`PreTrainedModel`, *optional*): the model that the student learns from.
    """

    def __init__(self, teacher: PreTrainedModel | None = None):
        self._is_whole, self._has_ended = True, False
        self._data: DataFacts | None = None
        self._adapters: AdapterFacts | None = None
        self._targets: str | None = None
        self._teacher: TeacherFacts | None = None
        if teacher is not None:
            self.set_teacher(teacher)

    def set_teacher(self, teacher: Any) -> None:
        """Note the model that the student learns from."""
        source = checkpoint_facts(teacher.config)
        self._teacher = TeacherFacts(**source.to_dict(), parameters=_parameters(teacher))

    def set_targets(self, targets: str) -> None:
        """Note the part of a teacher's distribution that the student learns from, if that is not all of it."""
        self._targets = targets

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_whole, self._has_ended = state.global_step == 0, False
        student = _student(kwargs["model"])
        Lineage.of(student).attach(student)
        self._data = _data_facts(kwargs["train_dataloader"])
        self._adapters = _adapter_facts(kwargs["model"])  # now, as merging removes their configuration

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
        """Attach the facts known now, instead of those of an earlier training."""
        student = _student(model)
        lineage = Lineage.of(student)
        facts = training_facts(args, state, is_whole=self._is_whole, has_ended=self._has_ended)
        facts = replace(facts, parameters=_parameters(student), targets=self._targets, adapters=self._adapters)
        results = replace(
            lineage.results.of_making,
            data=self._data,
            teacher=self._teacher,
            student=facts,
            environment=facts.environment,
        )
        replace(lineage, results=results).attach(student)


def _student(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _data_facts(dataloader: Any) -> DataFacts | None:
    """Tokens of a block; `None` if blocks differ in length, are streamed, or have another form."""
    try:
        dataset = dataloader.dataset
        rows = [dataset[row] for row in (0, len(dataset) // 2, len(dataset) - 1)]
        (size,) = {len(row["input_ids"]) for row in rows if isinstance(row, Mapping)}
    except (AttributeError, TypeError, ValueError, LookupError, NotImplementedError):
        return None
    return DataFacts(block_size=size)


def _parameters(student: Any) -> int:
    """Parameters of the student without adapters; from its configuration, since its weights may be sharded."""
    config = getattr(student, "config", None)
    if config is not None and has_architecture(config):
        return num_parameters(config)
    return sum(p.numel() for name, p in student.named_parameters() if LORA_PREFIX not in name)


def _adapter_facts(model: Any) -> AdapterFacts | None:
    """Kind, size, rank and scale of adapters that are trained; `None` if there are none."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    config = next(iter(configs.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return AdapterFacts(
        type="LoRA" if kind == "LORA" else kind,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        r=getattr(config, "r", None),
        alpha=getattr(config, "lora_alpha", None),
    )
