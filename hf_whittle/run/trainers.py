"""Trainings of a run: the student learns from the teacher or from its store, the baseline from text alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from ..cost.counts import num_parameters
from ..distillation.config import DistillationConfig
from ..distillation.store.reader import LogitStore
from ..distillation.trainer import DistillationTrainer
from ..files.disk import disk_errors
from ..files.tokenizer import save_tokenizer
from ..models.student import student_class
from ..processes import any_process, in_first, shared
from ..record.facts import TrainingFacts
from ..record.training import training_facts
from ..subnet import Kept
from ..training.checkpoints import last_checkpoint
from ..training.interruption import SaveOnInterrupt
from ..training.progress import TrainingBar
from .batches import own_arguments
from .inputs import Inputs
from .ledger import Ledger, training_cost
from .text import Text
from .trackers import tracked

Weights = dict[str, Any] | None
"""The state dict of a student whose weights are sharded; `None` if they are whole."""


@dataclass(frozen=True)
class Trainers:
    """Makes the trainers of a run, which share one teacher; letting go of it frees the teacher's memory.

    Args:
        inputs (`Inputs`): the inputs of the run.
        kept (`int` or `tuple[int, ...]`, *optional*): the student's part of the super-network's vocabulary; all by
            default.
        keeps_supernet (`bool`, *optional*, defaults to `False`): whether the super-network is needed after them.
    """

    inputs: Inputs
    kept: Kept | None = None
    keeps_supernet: bool = False

    @property
    def text(self) -> Text:
        """The text in the student's tokens."""
        return self.inputs.text_of(self.kept)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        return self.text.tokenizer()

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The model that students learn from; a super-network of its own is freed before it is loaded."""
        if not self.keeps_supernet and not self.inputs.is_one_model:
            self.inputs.free_supernet()
        return self.inputs.load_teacher()

    def free_teacher(self) -> None:
        """Free the memory of the teacher, which is loaded again where it is needed."""
        for name in ("teacher", "targets"):
            self.__dict__.pop(name, None)
        if not self.keeps_supernet:
            self.inputs.free_supernet()

    @cached_property
    def targets(self) -> PreTrainedModel | LogitStore:
        """The teacher, or the store of its logits that the recipe names.

        Raises:
            StoreError: if the store is of another teacher.
        """
        if self.inputs.recipe.teacher_store is None:
            return self.teacher
        store = LogitStore(self.inputs.recipe.teacher_store)
        in_first(lambda: store.check(teacher=self.teacher))  # which reads all of its weights
        self.free_teacher()
        return store

    def make(
        self, model: PreTrainedModel, args: DistillationConfig, blocks: dict[str, Dataset], callbacks: list[Any]
    ) -> DistillationTrainer:
        """The trainer of a model on the splits `train` and `test`."""
        return DistillationTrainer(
            model=model,
            teacher_model=self.targets if args.has_teacher else None,
            args=args,
            train_dataset=blocks["train"],
            eval_dataset=blocks["test"],
            processing_class=self.tokenizer,
            vocabulary=self.inputs.vocabulary_of(self.kept) if args.has_teacher else None,
            callbacks=callbacks,
        )


@dataclass(frozen=True)
class Training:
    """A training of a run, which goes on from its last checkpoint in `stages/NAME`.

    Args:
        name (`str`): `"student"` or `"baseline"`.
        trainers (`Trainers`): make its trainer.
        ledger (`Ledger`): keeps its facts.
        progress (`bool`): whether to show a progress bar.
    """

    name: str
    trainers: Trainers
    ledger: Ledger
    progress: bool
    _interruption: SaveOnInterrupt = field(default_factory=SaveOnInterrupt, init=False)

    def facts(
        self,
        make_student: Callable[[], PreTrainedModel],
        overrides: dict[str, Any],
        keep: Callable[[PreTrainedModel, Weights], None] | None = None,
    ) -> TrainingFacts:
        """Facts of the training, which is done first if it has not been.

        Args:
            make_student (`Callable`): gives the student to train.
            overrides (`dict`): arguments that differ from the recipe's section `training`.
            keep (`Callable`, *optional*): saves the trained student in the first process.

        Raises:
            KeyboardInterrupt: after a checkpoint, or after the facts, if Ctrl-C was pressed in the training.
        """
        facts = self.ledger.once(self.name, TrainingFacts, lambda: self._train(make_student(), overrides, keep))
        if any_process(self._interruption.interrupted):
            raise shared(KeyboardInterrupt())
        return facts

    def _train(self, student: PreTrainedModel, overrides: dict[str, Any], keep: Any) -> TrainingFacts:
        inputs, folder = self.trainers.inputs, self.ledger.stages / self.name
        checkpoint = in_first(lambda: last_checkpoint(folder))
        if checkpoint is not None:
            overrides = {**overrides, "eval_on_start": False}  # it was evaluated before the interruption
        args = own_arguments(inputs.recipe, folder, disable_tqdm=True, **overrides)  # `TrainingBar` stands in
        if not args.has_teacher:
            self.trainers.free_teacher()
        with tracked(args, self.ledger.folder, self.name):
            trainer = self._trainer(student, args)
            self._finish(trainer, checkpoint)
        if keep is not None:
            weights = whole_weights(trainer)
            in_first(lambda: keep(trainer.accelerator.unwrap_model(trainer.model), weights))
        teacher = inputs.teacher_config if args.has_teacher else None
        return replace(
            training_facts(args, trainer.state, is_whole=checkpoint is None, of_bytes=inputs.counts_bytes),
            parameters=num_parameters(student.config),  # its weights may be sharded
            targets=trainer.teacher.in_words if isinstance(trainer.teacher, LogitStore) else None,
            flops_per_token=training_cost(student.config, teacher, inputs.recipe.data.block_size),
        )

    def _trainer(self, student: PreTrainedModel, args: DistillationConfig) -> DistillationTrainer:
        bars = [TrainingBar(self.name)] if self.progress else []
        trainer = self.trainers.make(student, args, self.trainers.text.blocks, [self._interruption, *bars])
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _finish(self, trainer: DistillationTrainer, checkpoint: str | None) -> None:
        """Train to the last step, and evaluate there."""
        try:
            with disk_errors(self.ledger.stages / self.name):
                trainer.train_from(checkpoint)
        finally:
            self._interruption.restore()
        state = trainer.state
        if self._interruption.interrupted and state.global_step < state.max_steps:
            raise shared(KeyboardInterrupt())
        if not any("eval_loss" in row and row["step"] == state.global_step for row in state.log_history):
            trainer.evaluate()


def random_student(config: PreTrainedConfig) -> PreTrainedModel:
    """A student of a configuration, from random initialization."""
    student: PreTrainedModel = student_class(config)(config)
    return student


def whole_weights(trainer: DistillationTrainer) -> Weights:
    """The weights of a trained student if they are sharded over processes, which must all call this."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return trainer.accelerator.get_state_dict(
            trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
        )
    return None


def save_student(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: Weights = None
) -> None:
    """Write a student and its tokenizer; its weights as given, or else as it has them."""
    student.config.use_cache = True  # the Trainer unsets it
    student.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)
