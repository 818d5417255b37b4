"""DistillationTrainer: a `Trainer` whose student learns from text and from a teacher."""

import contextlib
import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..compat.others import LORA_PREFIX
from ..cost.models import forward_flops_per_token
from ..data.batches import check_columns, collate_blocks, items_that_count
from ..errors import NonFiniteLossError, VocabularyError
from ..evaluation import perplexity
from ..hub.trainer import PublishingTrainer
from ..loss.divergences import IGNORED, labels_of_rows
from ..loss.hidden import layer_outputs
from ..loss.targets import DenseTargets, Targets
from ..models.placement import check_not_offloaded
from ..processes import end_group_at_exit
from ..subnet import SubnetConfig
from ..training.checkpoints import WholeCheckpoints
from ..training.loss_in_head import LossInHead
from ..training.precision import check_precision
from ..vocabulary.token_bytes import token_bytes
from ..vocabulary.vocabulary_map import VocabularyMap
from .adapters import with_adapters
from .config import DistillationConfig
from .non_finite import advise, describe_batch, first_non_finite_weight, loss_without_gradient
from .projections import TrainsProjections, hidden_loss_of
from .store.reader import LogitStore
from .teacher import Teacher, check_apart, load_teacher, tokenizer_of_teacher
from .vocabularies import TeacherVocabulary, match_vocabularies

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import TrainingArguments

logger = logging.get_logger(__name__)


class DistillationTrainer(TrainsProjections, LossInHead, WholeCheckpoints, PublishingTrainer):
    """Pretrains a causal language model on packed blocks of tokens with cross-entropy and a divergence from a teacher.

    If the output layers of student and teacher are plain matrices, the logits of a whole batch are never held, neither
    in training, with a teacher or without, nor in an evaluation without `compute_metrics`.
    Evaluation reports plain cross-entropy as `eval_loss` and its exponential as `eval_perplexity`, whatever the weights
    of the training loss, and `eval_bits_per_byte`, which compares models of different vocabularies, if the tokenizer is
    given. Training logs both parts of the loss, tokens seen, tokens per second, and FLOPs including the
    teacher's. Saved models carry their lineage, and `push_to_hub` does the same as `push_subnet_to_hub`. Everything
    else is `transformers.Trainer`.

    Args:
        model (`PreTrainedModel`): the student.
        teacher_model (`PreTrainedModel`, `str`, `Path` or `LogitStore`, *optional*): the teacher, a checkpoint of it,
            or a store of its predictions for the training blocks. It runs in evaluation mode without gradients, is in
            no checkpoint, and only its device may change. Not loaded if `args.beta` and `args.hidden_weight` are 0.
        args (`DistillationConfig`, *optional*): training arguments and weights of the loss.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): the teacher's tokenizer, compared with
            `processing_class`; loaded from `teacher_model`, of the same revision, if that is a checkpoint.
        data_collator (*optional*): by default `hf_whittle.data.collate_blocks`, for blocks without padding.
        subnet (`SubnetConfig`, *optional*): subnet of the teacher that the student was extracted from, for
            `args.hidden_weight`; known for students from `extract_subnet`.
        vocabulary (`VocabularyMap`, *optional*): the teacher's ids of a student's tokens, if it has a part of the
            teacher's; known from tokenizers, or for students from `extract_subnet`. The teacher then reads the
            student's tokens, and `args.dropped_tokens` says what becomes of the probability of all others.
        peft_config (`PeftConfig`, *optional*): trains adapters of the student instead of its weights; by default on all
            matrices of its layers.
        kwargs: further arguments of `Trainer`.

    Raises:
        VocabularyError: if teacher and student differ in vocabulary or tokenizer.
        StoreError: if a store has another temperature or vocabulary, or lacks a block of the training set.
        NonFiniteLossError: in training, at a NaN or infinite loss, unless `args.non_finite_loss` is `"skip"`.
        ValueError: if there is no teacher to learn from, it shares weights with the student, or arguments cannot be
            combined.
    """

    args: DistillationConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        teacher_model: "PreTrainedModel | str | os.PathLike[str] | LogitStore | None" = None,
        args: "TrainingArguments | None" = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        *,
        subnet: SubnetConfig | None = None,
        vocabulary: VocabularyMap | None = None,
        peft_config: "PeftConfig | None" = None,
        **kwargs: Any,
    ):
        args = args or DistillationConfig()
        if not isinstance(args, DistillationConfig):
            raise TypeError(f"args must be a DistillationConfig, got {type(args).__name__}")
        if model is not None:
            check_not_offloaded(model)
        if peft_config is not None:
            model = with_adapters(model, peft_config, args)
        self.teacher: nn.Module | LogitStore | None = None
        if data_collator is None:
            check_columns(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        super().__init__(model=model, args=args, data_collator=data_collator or collate_blocks, **kwargs)
        end_group_at_exit()
        self._check_training(kwargs.get("optimizers"))
        self._sums = torch.zeros(4, device=self.args.device)  # since the last log: both parts, hidden loss, rows
        self._evaluated = torch.zeros(2, dtype=torch.long, device=self.args.device)  # tokens, and their bytes of text
        self._chunk_size = args.chunk_size(self.args.device.type == "cpu")
        if not args.has_teacher:
            return
        if teacher_model is None:
            which = "beta" if args.beta > 0 else "hidden_weight"
            raise ValueError(f"{which} > 0 needs a teacher_model; give one, or set {which}=0 for plain pretraining")
        self._set_teacher(teacher_model, teacher_tokenizer, vocabulary)
        if args.hidden_weight > 0:
            student: Any = self.accelerator.unwrap_model(self.model)
            self._hidden = hidden_loss_of(student, self.teacher, subnet, args.hidden_loss).to(self.args.device)

    def _check_training(self, optimizers: tuple[Any, Any] | None) -> None:
        student: Any = self.accelerator.unwrap_model(self.model)
        check_precision(student, "student")
        will_be_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.non_finite_loss == "skip" and will_be_sharded:
            raise ValueError("a batch cannot be skipped if weights are sharded; set non_finite_loss='stop'")
        if self.args.hidden_weight > 0 and (will_be_sharded or (optimizers or (None,))[0] is not None):
            raise ValueError(
                "hidden_weight > 0 trains projections beside the student, which needs the Trainer's own optimizer and "
                "weights that are not sharded; set hidden_weight=0"
            )
        if self.args.has_teacher and self.compute_loss_func is not None:
            raise ValueError("compute_loss_func has no effect on distillation; unset it, or set beta=0")

    def _set_teacher(
        self,
        teacher: "PreTrainedModel | str | os.PathLike[str] | LogitStore",
        tokenizer: PreTrainedTokenizerBase | None,
        vocabulary: VocabularyMap | None,
    ) -> None:
        student: Any = self.accelerator.unwrap_model(self.model)
        ours = self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None
        if isinstance(teacher, LogitStore):
            if self.args.hidden_weight > 0:
                raise ValueError("a store has no hidden states; set hidden_weight=0, or give the teacher itself")
            if self.args.divergence != "forward_kl":
                raise ValueError(
                    f"{self.args.divergence} needs the teacher's whole distribution; with a store, use forward_kl"
                )
            if vocabulary is None and ours is not None and tokenizer is not None:
                vocabulary = VocabularyMap.between(ours, tokenizer)
            teacher.check(
                temperature=self.args.temperature,
                vocab_size=student.config.vocab_size,
                tokenizer=ours,
                vocabulary=vocabulary,
                dropped_tokens=self.args.dropped_tokens,
            )
            self.teacher = teacher
            self._recording.set_targets(teacher.in_words)
            return
        if isinstance(teacher, str | os.PathLike):
            options: Any = self.args.teacher_model_init_kwargs
            if tokenizer is None and vocabulary is None and ours is not None:
                tokenizer = tokenizer_of_teacher(teacher, options)
            teacher = load_teacher(teacher, options)
        check_apart(student, teacher)
        dropped = self.args.dropped_tokens
        vocabulary = match_vocabularies(student, teacher, ours, tokenizer, vocabulary, dropped == "first_piece")
        self._recording.set_teacher(teacher)
        of_teacher = None if vocabulary is None else TeacherVocabulary.of(vocabulary, dropped)
        self._teacher = Teacher(teacher, self.accelerator, of_teacher)
        self.teacher = self._teacher.model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy, plus the divergence from the teacher while training."""
        num_items_in_batch = items_that_count(num_items_in_batch, model.training)
        if model.training and self.teacher is not None:
            loss, outputs = self._distil(model, inputs, return_outputs, num_items_in_batch)
        else:
            loss, outputs = self.text_loss(model, inputs, return_outputs, num_items_in_batch)
            if not model.training:
                self._count_bytes(inputs)
            elif not loss.isfinite().all():
                loss = self._non_finite(loss, model, inputs, "from the student")
        return (loss, outputs) if return_outputs else loss

    @cached_property
    def _token_bytes(self) -> torch.Tensor | None:
        """Bytes that each token of the student stands for, if its tokenizer is known and has such."""
        if not isinstance(self.processing_class, PreTrainedTokenizerBase):
            return None
        with contextlib.suppress(VocabularyError):
            return token_bytes(self.processing_class).to(self.args.device)
        return None

    def _count_bytes(self, inputs: dict[str, Any]) -> None:
        """Count the tokens that an evaluation predicts in the batches of all processes, and their bytes.

        Blocks that are read twice, since the last batches are filled up, count once, as in the loss.
        """
        if self._token_bytes is not None and "labels" in inputs:
            labels = inputs["labels"][:, 1:]
            counts = labels != IGNORED
            known = counts & (labels < len(self._token_bytes))
            sizes = self._token_bytes[labels.where(known, 0)] * known
            of_blocks = torch.stack([counts.sum(1), sizes.sum(1)], 1)
            self._evaluated += self.accelerator.gather_for_metrics(of_blocks).sum(0)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does."""
        self._evaluated.zero_()
        return super().evaluate(*args, **kwargs)

    def _distil(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        inputs = {**inputs, "use_cache": False}
        labels = labels_of_rows(inputs.pop("labels"))
        student: Any = self.accelerator.unwrap_model(model)
        head = None if return_outputs else self._output_layer(student)  # may run the student on two tokens
        with self._layer_outputs(self.teacher) as of_teacher:
            targets = self._targets(inputs)
        with self._layer_outputs(student) as of_student:
            outputs, total, loss = self._run(model, inputs, head, targets, labels, self.args.loss_weights)
        hidden = torch.zeros_like(total)
        if self._hidden is not None:
            hidden = self._hidden(of_student, of_teacher, (labels != IGNORED).nonzero()[:, 0])
            total = total + self.args.hidden_weight * hidden
        scaled = total / self._normalizer(loss.rows, num_items_in_batch)
        if scaled.isfinite():
            self._sums += torch.stack([loss.cross_entropy, loss.divergence, hidden.detach(), loss.rows]).float()
            return scaled, outputs
        cause = "from the student, as the teacher's output is finite"
        if isinstance(targets, DenseTargets) and not targets.hidden_states.isfinite().all():
            cause = "since the teacher's output contains NaN or Inf"
        return self._non_finite(scaled, model, inputs, cause), outputs

    def _layer_outputs(self, model: Any) -> contextlib.AbstractContextManager[list[torch.Tensor]]:
        return contextlib.nullcontext([]) if self._hidden is None else layer_outputs(model)

    def _targets(self, inputs: dict[str, Any]) -> Targets:
        if isinstance(self.teacher, LogitStore):
            if "position_ids" in inputs:
                raise ValueError(
                    "the teacher of a store read each block as one document; train without a DocumentCollator"
                )
            if "attention_mask" in inputs and not inputs["attention_mask"].all():
                raise ValueError(
                    "the teacher of a store read all tokens of each block; train without an attention_mask, and with "
                    "label -100 for tokens to leave out"
                )
            return self.teacher.targets(inputs["input_ids"])
        return self._teacher.targets(inputs)

    def _non_finite(self, loss: torch.Tensor, model: nn.Module, inputs: dict[str, Any], cause: str) -> torch.Tensor:
        """Raise an error with the cause of a NaN or infinite loss, or skip the batch by a loss without gradient."""
        broken = first_non_finite_weight(model)
        if broken is not None:
            cause = f"since weights of the student contain NaN or Inf, {broken} first"
        message = f"the loss is {loss.item()} at step {self.state.global_step + 1}, {cause}"
        if self.args.non_finite_loss == "skip" and broken is None:
            logger.warning(f"Skipped a batch: {message}")
            hidden = self._hidden.parameters() if self._hidden is not None else ()
            return loss_without_gradient(loss, [*model.parameters(), *hidden])
        batch = describe_batch(inputs["input_ids"], self.train_dataset, self.processing_class)
        advice = advise(str(self.args.output_dir), can_skip=broken is None)
        raise NonFiniteLossError(f"{message}; {batch}. {advice}")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does."""
        self._sums.zero_()  # an interrupted training leaves some
        return super().train(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of a training step on a batch: the student's forward and backward, and the teacher's forward."""
        batch, length = inputs["input_ids"].shape
        student: Any = self.accelerator.unwrap_model(self.model)
        trained = any(p.requires_grad for name, p in student.named_parameters() if LORA_PREFIX not in name)
        passes = 3 if trained else 2  # frozen weights have no gradients
        per_token = passes * forward_flops_per_token(student, length)
        if isinstance(self.teacher, nn.Module):
            per_token += forward_flops_per_token(self.teacher, length)
        return batch * length * per_token

    def merge_adapters(self) -> PreTrainedModel:
        """Merge the adapters into the student, which is then a stock model again, and the trainer's model.

        Raises:
            ValueError: if there are no adapters.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "merge_and_unload"):
            raise ValueError("there are no adapters to merge; train them with peft_config=LoraConfig(...)")
        merged = model.merge_and_unload().requires_grad_()
        self.optimizer = self.lr_scheduler = None  # these are for the adapters
        self.model = self.model_wrapped = merged
        return merged

    def train_from(self, checkpoint: str | None) -> None:
        """Train on from a checkpoint, or from the start without one; a checkpoint of the last step is only loaded."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # and only `Trainer.train` shards it
            if state.global_step >= state.max_steps and not is_sharded:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, and add the parts of the training loss, FLOPs, and perplexities of evaluations."""
        if "loss" in logs:
            logs["total_flos"] = self.state.total_flos
            if self.teacher is not None:
                cross_entropy, divergence, hidden, rows = self.accelerator.reduce(self._sums, "sum").tolist()
                if rows:
                    name = "kl" if self.args.divergence == "forward_kl" else self.args.divergence
                    logs |= {"cross_entropy": cross_entropy / rows, name: divergence / rows}
                    logs |= {"hidden_loss": hidden / rows} if self._hidden is not None else {}
                self._sums.zero_()
        for name in [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]:
            logs[name.removesuffix("loss") + "perplexity"] = perplexity(logs[name])
            tokens, bytes_of_text = self._evaluated.tolist()
            if bytes_of_text:
                logs[name.removesuffix("loss") + "bits_per_byte"] = logs[name] * tokens / bytes_of_text / math.log(2)
        super().log(logs, *args, **kwargs)
