"""DistillationTrainer: a `Trainer` whose student learns from text and from a teacher."""

import contextlib
import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..compat import LORA_PREFIX
from ..cost.models import forward_flops_per_token
from ..data.batches import check_columns, collate_blocks, items_that_count
from ..errors import CheckpointError, NonFiniteLossError, SubnetError
from ..evaluation import perplexity
from ..files.paths import expanded
from ..hub.trainer import PublishingTrainer
from ..loss.divergences import IGNORED, DistillationLoss, naive_distillation_loss
from ..loss.fused import fused_distillation_loss
from ..loss.heads import head_of, in_place_of, output_module
from ..loss.hidden import HiddenStateLoss, layer_outputs
from ..loss.liger import liger_distillation_loss, liger_function
from ..loss.targets import DenseTargets, Head, Targets
from ..models.architecture import has_architecture
from ..models.weights import check_not_offloaded
from ..processes import end_group_at_exit
from ..record.lineage import Lineage
from ..subnet import SubnetConfig
from ..training.checkpoints import WholeCheckpoints, whole_checkpoints
from .config import DistillationConfig
from .store.writer import LogitStore
from .teacher import Teacher, check_apart, check_vocabulary, load_teacher

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import TrainingArguments

logger = logging.get_logger(__name__)

LORA_TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
"""Every matrix of a GPT-NeoX layer, for adapters whose configuration names none."""
_PROJECTIONS_FILE = "hidden_projections.safetensors"


class DistillationTrainer(WholeCheckpoints, PublishingTrainer):
    """Pretrains a causal language model on packed blocks of tokens with cross-entropy and a divergence from a teacher.

    Logits of the whole batch are held neither of the student nor of the teacher, where their output layers are plain
    matrices and `args.loss_impl` is `"fused"` or `"liger"`. Evaluation always reports plain
    cross-entropy as `eval_loss`, and its exponential as `eval_perplexity`, whatever the weights of the training loss
    are. Logs of training hold both parts of the loss, tokens seen and a second, and the FLOPs so far, those of the
    teacher among them. What is saved knows where it comes from, and `push_to_hub` does what `push_subnet_to_hub` does.
    Everything else is `transformers.Trainer`.

    Args:
        model (`PreTrainedModel`): the student.
        teacher_model (`PreTrainedModel`, `str`, `Path` or `LogitStore`, *optional*): the teacher, where to load it
            from, or what it said about the training blocks. It runs in evaluation mode, gets no gradient, is in no
            checkpoint, and is left as it was but for its device. Not loaded if `args.beta` and `args.hidden_weight`
            are 0.
        args (`DistillationConfig`, *optional*): training arguments and weights of the loss.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): the teacher's tokenizer, compared with
            `processing_class`; loaded from `teacher_model` where that is a name.
        data_collator (*optional*): by default `hf_whittle.data.documents.collate_blocks`, for blocks without padding.
        subnet (`SubnetConfig`, *optional*): what the student keeps of the teacher, for `args.hidden_weight`; known of
            students that `extract_subnet` gave or wrote.
        peft_config (`PeftConfig`, *optional*): train adapters of the student instead of its weights; by default on all
            matrices of its layers.
        kwargs: as for `Trainer`.

    Raises:
        VocabularyError: if teacher and student differ in vocabulary or tokenizer.
        StoreError: if a store is of another temperature or vocabulary, or lacks a block that is trained on.
        NonFiniteLossError: while training, at a NaN or infinite loss, unless `args.non_finite_loss` is `"skip"`.
        ValueError: if there is no teacher to learn from, if it shares weights with the student, or for combinations of
            arguments that do not work.
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
        peft_config: "PeftConfig | None" = None,
        **kwargs: Any,
    ):
        args = args or DistillationConfig()
        if not isinstance(args, DistillationConfig):
            raise TypeError(f"args must be a DistillationConfig, got {type(args).__name__}")
        if model is not None:
            check_not_offloaded(model)
        if peft_config is not None:
            model = _with_adapters(model, peft_config, args)
        self.teacher: nn.Module | LogitStore | None = None
        if data_collator is None:
            check_columns(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        super().__init__(model=model, args=args, data_collator=data_collator or collate_blocks, **kwargs)
        end_group_at_exit()
        student: Any = self.accelerator.unwrap_model(self.model)
        if any(p.dtype == torch.float16 and p.requires_grad for p in student.parameters()):
            raise ValueError(
                "the student's weights are in float16, in which an optimizer loses small updates; load it with "
                "dtype=torch.float32, and set bf16=True or fp16=True for mixed precision"
            )
        self._sums = torch.zeros(4, device=self.args.device)  # cross-entropy, divergence, hidden, rows since a log
        self._chunk_size = args.loss_chunk_size or (256 if self.args.device.type == "cpu" else 1024)
        self._loss: DistillationLoss | None = None  # of the forward pass that is under way
        self._asked: tuple[Targets, torch.Tensor] | None = None
        self._plain_head: tuple[Any, Any] = None, None  # an output layer, and what the loss may take the place of
        self._hidden: HiddenStateLoss | None = None
        self._starts_step = True
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if args.non_finite_loss == "skip" and sharded:
            raise ValueError("a batch cannot be skipped where weights are sharded; set non_finite_loss='stop'")
        if not args.has_teacher:
            return
        if args.loss_impl == "liger":
            liger_function()  # says before the training if it is missing
        if args.hidden_weight > 0 and (sharded or kwargs.get("optimizers", (None, None))[0] is not None):
            raise ValueError(
                "hidden_weight > 0 trains projections beside the student: that needs the Trainer's own optimizer, and "
                "weights that are not sharded; set hidden_weight=0"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func has no effect on distillation; unset it, or set beta=0")
        if teacher_model is None:
            which = "beta" if args.beta > 0 else "hidden_weight"
            raise ValueError(f"{which} > 0 needs a teacher_model; give one, or set {which}=0 for plain pretraining")
        self._compute_in_head = torch.compiler.disable(self._compute_in_head)  # type: ignore[method-assign]
        self._set_teacher(teacher_model, teacher_tokenizer)
        if args.hidden_weight > 0:
            self._hidden = self._make_hidden_loss(student, subnet)

    def _set_teacher(
        self,
        teacher: "PreTrainedModel | str | os.PathLike[str] | LogitStore",
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        student: Any = self.accelerator.unwrap_model(self.model)
        ours = self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None
        if isinstance(teacher, LogitStore):
            if self.args.hidden_weight > 0:
                raise ValueError("a store has no hidden states; set hidden_weight=0, or give the teacher itself")
            if self.args.divergence != "forward_kl":
                raise ValueError(
                    f"{self.args.divergence} needs the teacher's whole distribution; a store allows forward_kl alone"
                )
            teacher.check(temperature=self.args.temperature, vocab_size=student.config.vocab_size, tokenizer=ours)
            self.teacher = teacher
            self._recording.set_targets(teacher.in_words)
            return
        if isinstance(teacher, str | os.PathLike):
            if tokenizer is None and ours is not None:
                tokenizer = AutoTokenizer.from_pretrained(expanded(teacher))
            options: Any = self.args.teacher_model_init_kwargs
            teacher = load_teacher(teacher, options)
        check_apart(student, teacher)
        check_vocabulary(student.config, teacher.config, ours, tokenizer)
        self._recording.set_teacher(teacher)
        self._teacher = Teacher(teacher, self.accelerator)
        self.teacher = self._teacher.model

    def _make_hidden_loss(self, student: Any, subnet: SubnetConfig | None) -> HiddenStateLoss:
        lineage = Lineage.of(student)
        subnet = subnet or lineage.subnet
        if subnet is None:
            raise SubnetError(
                "hidden_weight > 0 needs to know which of the teacher's layers the student keeps; give subnet=..., or "
                "a student from extract_subnet"
            )
        if lineage.carries_components and not student.config.tie_word_embeddings:
            raise SubnetError(
                "hidden_weight > 0 compares the channels that were kept with the teacher's, and this student was "
                "healed to carry principal components instead; heal it with HealingConfig(basis='channels')"
            )
        teacher: Any = self.teacher
        subnet.validate(teacher.config)
        sizes = student.config.hidden_size, teacher.config.hidden_size
        return HiddenStateLoss(subnet, sizes, self.args.hidden_loss).to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy, plus the divergence from the teacher while training."""
        num_items_in_batch = items_that_count(num_items_in_batch, model.training)
        if not model.training:  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.teacher is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            if not loss.isfinite().all():
                loss = self._faulty(loss, model, inputs, "from the student")
            return (loss, outputs) if return_outputs else loss
        try:
            loss, outputs = self._distil(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._asked = self._loss = None
        return (loss, outputs) if return_outputs else loss

    def _distil(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        inputs = {**inputs, "use_cache": False}
        labels = F.pad(inputs.pop("labels"), (0, 1), value=IGNORED)[..., 1:].flatten()  # row t predicts token t + 1
        student: Any = self.accelerator.unwrap_model(model)
        head = self._output_module(student)
        with contextlib.ExitStack() as watched:
            if self._hidden is not None:
                of_teacher = watched.enter_context(layer_outputs(self._teacher.model))
            targets = self._targets(inputs, student.config.vocab_size)
        with contextlib.ExitStack() as watched:
            if self._hidden is not None:
                of_student = watched.enter_context(layer_outputs(student))
            if head is None or return_outputs:
                outputs = model(**inputs)
                self._loss = self._compute(outputs.logits.flatten(0, 1), None, targets, labels)
                total = self._loss.total
            else:
                self._asked = targets, labels
                watched.enter_context(in_place_of(head, self._compute_in_head))
                outputs = model(**inputs)
                total = outputs.logits.sum()
        loss: Any = self._loss
        hidden = torch.zeros_like(total)
        if self._hidden is not None:
            hidden = self._hidden(of_student, of_teacher, (labels != IGNORED).nonzero()[:, 0])
            total = total + self.args.hidden_weight * hidden
        scaled = total / self._normaliser(loss.rows, num_items_in_batch)
        parts = torch.stack([loss.cross_entropy, loss.divergence, hidden.detach(), loss.rows]).float()
        if scaled.isfinite():
            self._sums += parts
            return scaled, outputs
        blame = "from the student, whose teacher gives numbers"
        if isinstance(targets, DenseTargets) and not targets.states.isfinite().all():
            blame = "since the teacher gives what is no number"
        return self._faulty(scaled, model, inputs, blame), outputs

    def _output_module(self, student: Any) -> nn.Module | None:
        """The layer whose place the loss takes; a new one if the model or its output layer was exchanged."""
        current = student.get_output_embeddings() if hasattr(student, "get_output_embeddings") else None
        if self._plain_head[0] is not current:
            self._plain_head = current, output_module(student) if self.args.n_gpu <= 1 else None
        return self._plain_head[1]

    def _targets(self, inputs: dict[str, Any], size: int) -> Targets:
        if isinstance(self.teacher, LogitStore):
            if "position_ids" in inputs:
                raise ValueError("the teacher of a store saw each block as a whole; train without a DocumentCollator")
            if "attention_mask" in inputs and not inputs["attention_mask"].all():
                raise ValueError(
                    "the teacher of a store saw all tokens of each block; train without an attention_mask, with labels "
                    "of -100 where a token does not count"
                )
            return self.teacher.targets(inputs["input_ids"])
        return self._teacher.targets(inputs, size)

    def _compute_in_head(self, states: torch.Tensor) -> torch.Tensor:
        """The summed loss, in place of logits; called by the student's forward."""
        assert self._asked is not None
        self._loss = self._compute(states.flatten(0, 1), head_of(self._plain_head[1]), *self._asked)
        return self._loss.total.reshape(1, 1, 1)

    def _compute(
        self, states: torch.Tensor, head: Head | None, targets: Targets, labels: torch.Tensor
    ) -> DistillationLoss:
        weights = self.args.loss_weights
        if self.args.loss_impl == "fused" or not isinstance(targets, DenseTargets):
            return fused_distillation_loss(states, head, targets, labels, weights, self._chunk_size)
        if self.args.loss_impl == "liger":
            return liger_distillation_loss(states, head, targets, labels, weights, self._chunk_size)
        logits = states if head is None else F.linear(states, head.weight, head.bias)
        everything = torch.arange(len(states), device=states.device)
        teacher_logits = targets.logits(everything, logits.shape[-1]).to(logits.device)
        return naive_distillation_loss(logits, teacher_logits, labels, weights)

    def _normaliser(self, rows: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Tokens to divide the summed loss by, so that gradients average over all tokens of an optimizer step."""
        if num_items_in_batch is None:
            return rows.clamp(min=1)
        items = torch.as_tensor(num_items_in_batch).flatten()[0].clamp(min=1)
        # Several processes average their gradients, while the count is over all of them.
        processes = self.accelerator.num_processes // self.get_tp_size()
        return items / processes if self.args.average_tokens_across_devices else items

    def _faulty(self, loss: torch.Tensor, model: nn.Module, inputs: dict[str, Any], blame: str) -> torch.Tensor:
        """An error that tells of a loss that is no number; a loss without any gradient, where batches are skipped."""
        broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
        if broken:
            blame = f"since weights of the student are no numbers, {broken[0]} first"
        message = f"the loss is {loss.item()} at step {self.state.global_step + 1}, {blame}"
        if self.args.non_finite_loss == "skip" and not broken:
            logger.warning(f"Skipped a batch: {message}")
            weights = [*model.parameters(), *(self._hidden.parameters() if self._hidden is not None else ())]
            # Every weight takes part with a gradient of 0, which is what other processes wait for.
            return sum(((weight * 0).sum() for weight in weights if weight.requires_grad), torch.zeros_like(loss))
        folder = str(self.args.output_dir)
        last = _last_good_checkpoint(folder)
        advice = "with a lower learning rate" + ("" if broken else ", or with non_finite_loss='skip'")
        raise NonFiniteLossError(
            f"{message}; {self._where(inputs)}. "
            + (
                f"The last good checkpoint is {last}: go on from it"
                if last
                else f"{folder} has none to go on from: start anew"
            )
            + f" {advice}"
        )

    def _where(self, inputs: dict[str, Any]) -> str:
        """The rows of the training set that are in a batch, or how its blocks begin."""
        blocks = [tuple(block) for block in inputs["input_ids"].tolist()]
        dataset: Any = self.train_dataset
        rows: dict[tuple[int, ...], int] = {}
        if isinstance(dataset, (Dataset, list)):
            for number, row in enumerate(dataset):
                block = tuple(torch.as_tensor(row["input_ids"]).tolist()) if "input_ids" in row else ()
                if block in blocks:
                    rows.setdefault(block, number)
                    if len(rows) == len(set(blocks)):
                        return f"the batch is rows {[rows[block] for block in blocks]} of train_dataset"
        starts: list[Any] = [list(block[:8]) for block in blocks]
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            starts = [self.processing_class.decode(start) for start in starts]
        return f"the blocks of the batch begin with {starts}"

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does."""
        self._sums.zero_()  # of a training that was broken off
        self._starts_step = True
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step of `Trainer`, which clears and averages the gradients of its model alone: the projections' too."""
        if self._hidden is None:
            return super().training_step(*args, **kwargs)
        if self._starts_step:
            self._hidden.zero_grad()
        loss = super().training_step(*args, **kwargs)
        self._starts_step = self.accelerator.sync_gradients
        if self._starts_step and self.accelerator.num_processes > 1:
            for parameter in self._hidden.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of `Trainer`, which also has the projections of hidden states."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self._hidden is not None:
            optimizer.add_param_group({"params": list(self._hidden.parameters()), "weight_decay": 0.0})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._hidden is not None and self.args.should_save:
            save_file(self._hidden.state_dict(), Path(output_dir) / _PROJECTIONS_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._hidden is not None and checkpoint is not None:
            path = Path(checkpoint) / _PROJECTIONS_FILE
            if not path.is_file():
                raise CheckpointError(f"{path} is missing: the checkpoint is of a training with hidden_weight=0")
            self._hidden.load_state_dict(load_file(path))
        super()._load_optimizer_and_scheduler(checkpoint)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of a training step on a batch: the student's, forward and backward, and the teacher's forward."""
        batch, length = inputs["input_ids"].shape
        student: Any = self.accelerator.unwrap_model(self.model)
        trained = any(p.requires_grad for name, p in student.named_parameters() if LORA_PREFIX not in name)
        passes = 3 if trained else 2  # frozen weights need no gradient of their own
        per_token = passes * forward_flops_per_token(student, length)
        if isinstance(self.teacher, nn.Module):
            per_token += forward_flops_per_token(self.teacher, length)
        return batch * length * per_token

    def merge_adapters(self) -> PreTrainedModel:
        """Fold the adapters into the student, which is then a stock one again, and the trainer's model.

        Raises:
            ValueError: if there are no adapters.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "merge_and_unload"):
            raise ValueError("there are no adapters to merge; train them with peft_config=LoraConfig(...)")
        merged = model.merge_and_unload().requires_grad_()
        self.optimizer = self.lr_scheduler = None  # those of the adapters
        self.model = self.model_wrapped = merged
        return merged

    def train_from(self, checkpoint: str | None) -> None:
        """Train on from a checkpoint, or from the start if it is `None`; do nothing more if it is of the last step."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, with the parts of the training loss and perplexities of evaluations beside it."""
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
        super().log(logs, *args, **kwargs)


def _with_adapters(model: Any, config: Any, args: DistillationConfig) -> Any:
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ImportError("peft_config needs peft: pip install 'hf_whittle[adapters]'") from error
    if getattr(config, "target_modules", None) is None and has_architecture(model.config):
        config = copy.copy(config)
        config.target_modules = set(LORA_TARGETS)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient would reach the adapters through frozen embeddings
    return get_peft_model(model, config)


def _last_good_checkpoint(folder: str) -> str | None:
    """The newest checkpoint all of whose weights are numbers."""
    for checkpoint in whole_checkpoints(folder):
        files = list(checkpoint.glob("*.safetensors"))
        if files and all(value.isfinite().all() for file in files for value in load_file(file).values()):
            return str(checkpoint)
    return None
