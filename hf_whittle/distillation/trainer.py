"""DistillationTrainer: a `Trainer` whose student learns from text and from a teacher's logits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from ..data import collate_blocks
from ..errors import VocabularyError
from ..fitness import perplexity
from .config import DistillationConfig
from .losses import IGNORED, LossWeights, distillation_loss

if TYPE_CHECKING:
    from transformers import TrainingArguments


class DistillationTrainer(Trainer):
    """Pretrains a causal language model on packed blocks of tokens with cross-entropy and forward KL from a teacher.

    Evaluation always reports plain cross-entropy as `eval_loss`, and its exponential as `eval_perplexity`, whatever
    the weights of the training loss are. Everything else is `transformers.Trainer`.

    Args:
        model (`PreTrainedModel`): the student.
        teacher_model (`PreTrainedModel` or `str`, *optional*): the teacher, or where to load it from. It is put in
            evaluation mode, gets no gradient and is in no checkpoint. Not loaded if `args.beta` is 0.
        args (`DistillationConfig`, *optional*): training arguments and weights of the loss.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): the teacher's tokenizer, compared with
            `processing_class`; loaded from `teacher_model` where that is a name.
        data_collator (*optional*): by default `hf_whittle.data.collate_blocks`, for blocks without padding.
        kwargs: as for `Trainer`.

    Raises:
        VocabularyError: if teacher and student differ in vocabulary size or tokenizer.
        ValueError: if `args.beta` is positive and there is no teacher.
    """

    _tag_names = ["hf_whittle", "knowledge-distillation"]
    _paper = {
        "title": "Where to Begin: Efficient Pretraining via Subnetwork Selection and Distillation",
        "id": "2510.07227",
    }

    args: DistillationConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        teacher_model: PreTrainedModel | str | None = None,
        args: "TrainingArguments | None" = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        args = args or DistillationConfig()
        if not isinstance(args, DistillationConfig):
            raise TypeError(f"args must be a DistillationConfig, got {type(args).__name__}")
        super().__init__(model=model, args=args, data_collator=data_collator or collate_blocks, **kwargs)
        if any(p.dtype == torch.float16 for p in self.accelerator.unwrap_model(self.model).parameters()):
            raise ValueError(
                "the student's weights are in float16, in which an optimizer loses small updates; load it with "
                "dtype=torch.float32, and set bf16=True or fp16=True for mixed precision"
            )
        self._weights = LossWeights(args.alpha, args.beta, args.temperature)
        self._sums = torch.zeros(3, device=self.args.device)  # cross-entropy, divergence, tokens since the last log
        self.teacher: nn.Module | None = None
        if args.beta > 0:
            if self.compute_loss_func is not None:
                raise ValueError("compute_loss_func has no effect on distillation; unset it, or set beta=0")
            if teacher_model is None:
                raise ValueError("beta > 0 needs a teacher_model; give one, or set beta=0 for plain pretraining")
            self.teacher = self._prepare_teacher(teacher_model, teacher_tokenizer)

    def _prepare_teacher(
        self, teacher: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase | None
    ) -> PreTrainedModel:
        if isinstance(teacher, str):
            if tokenizer is None and isinstance(self.processing_class, PreTrainedTokenizerBase):
                tokenizer = AutoTokenizer.from_pretrained(teacher)
            teacher = AutoModelForCausalLM.from_pretrained(teacher)
        sizes = teacher.config.vocab_size, self.accelerator.unwrap_model(self.model).config.vocab_size
        if sizes[0] != sizes[1]:
            raise VocabularyError(
                f"the teacher's vocabulary has {sizes[0]} entries, the student's {sizes[1]}; KL compares them entry by "
                "entry: use a teacher with the student's tokenizer"
            )
        if tokenizer is not None and isinstance(self.processing_class, PreTrainedTokenizerBase):
            check_same_tokens(self.processing_class, tokenizer)
        teacher.eval().requires_grad_(False)
        moved: Any = teacher
        return moved.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy, plus the divergence from the teacher while training."""
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "use_cache": False}
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = self.teacher(**inputs).logits
        targets = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]  # row t predicts token t + 1
        loss = distillation_loss(
            outputs.logits.flatten(0, 1),
            teacher_logits.flatten(0, 1),
            targets.flatten(),
            self._weights,
            self.args.loss_chunk_size,
        )
        self._sums += torch.stack([loss.cross_entropy, loss.divergence, loss.rows.float()])
        scaled = loss.total / self._normaliser(loss.rows, num_items_in_batch)
        return (scaled, outputs) if return_outputs else scaled

    def _normaliser(self, rows: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Tokens to divide the summed loss by, so that gradients average over all tokens of an optimizer step."""
        if num_items_in_batch is None:
            return rows.clamp(min=1)
        items = torch.as_tensor(num_items_in_batch).flatten()[0].clamp(min=1)
        # Several processes average their gradients, while the count is over all of them.
        return items / self.accelerator.num_processes if self.args.average_tokens_across_devices else items

    def train_from(self, checkpoint: str | None) -> None:
        """Train on from a checkpoint, or from the start if it is `None`; do nothing more if it is of the last step."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= state.max_steps:
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint)

    # Trainer loads tensors by the names they have in the file. `save_pretrained` gives a GPT-NeoX output matrix its old
    # name, `embed_out`, and only `from_pretrained` knows both.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed(resume_from_checkpoint, self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _load_renamed(self, checkpoint: str | None, model: nn.Module | None) -> bool:
        """Load a checkpoint's weights through `from_pretrained`, where the model is whole and was saved by it."""
        model = self.accelerator.unwrap_model(model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            return False
        if checkpoint is None or not (Path(checkpoint) / CONFIG_NAME).is_file():
            return False
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
        return True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, with the parts of the training loss and perplexities of evaluations beside it."""
        if "loss" in logs and self.teacher is not None:
            cross_entropy, divergence, rows = self.accelerator.reduce(self._sums, "sum").tolist()
            if rows:
                logs |= {"cross_entropy": cross_entropy / rows, "kl": divergence / rows}
            self._sums.zero_()
        for name in [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]:
            logs[name.removesuffix("loss") + "perplexity"] = perplexity(logs[name])
        super().log(logs, *args, **kwargs)


def check_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise `VocabularyError` unless two tokenizers have the same tokens under the same ids."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    different = [token for token in sorted(set(ours) | set(theirs)) if ours.get(token) != theirs.get(token)]
    first = different[0]
    raise VocabularyError(
        f"student and teacher tokenizers differ in {len(different)} tokens, first {first!r}: student id "
        f"{ours.get(first)}, teacher id {theirs.get(first)}; distillation needs the same tokenizer"
    )
