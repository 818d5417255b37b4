"""DistillationConfig: `TrainingArguments` with the settings of the distillation loss."""

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..checks import check_integers, check_numbers, check_positive
from ..loss.divergences import DIVERGENCES, LossWeights
from ..loss.hidden import HIDDEN_LOSSES
from ..models.heads import default_chunk_size
from ..training.arguments import check_arguments

DROPPED_TOKENS = ("first_piece", "renormalized")
NON_FINITE = ("stop", "skip")


@dataclass
class DistillationConfig(TrainingArguments):
    """`TrainingArguments` plus the distillation loss `alpha * CE + beta * temperature**2 * D(teacher, student)`.

    Defaults are those of arXiv 2510.07227: full logits, forward KL. Tokens seen are counted and logged. With a
    perplexity as `metric_for_best_model`, the model with the lowest one is best.

    Raises:
        ValueError: if a value is out of range, or `greater_is_better` would keep the worst model.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    alpha: float = field(default=0.2, metadata={"help": "Weight of cross-entropy; plain pretraining has 1."})
    beta: float = field(
        default=0.8, metadata={"help": "Weight of the divergence from the teacher; 0 is plain pretraining."}
    )
    temperature: float = field(default=0.9, metadata={"help": "Temperature of both distributions in the divergence."})
    divergence: str = field(default="forward_kl", metadata={"help": f"One of {', '.join(DIVERGENCES)}."})
    jsd_weight: float = field(
        default=0.5, metadata={"help": "The teacher's weight in jensen_shannon, between 0 and 1."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss between hidden states; needs the student's subnet."}
    )
    hidden_loss: str = field(default="mse", metadata={"help": f"One of {', '.join(HIDDEN_LOSSES)}."})
    dropped_tokens: str = field(
        default="first_piece",
        metadata={
            "help": "Probability of the teacher's tokens that a student with a smaller vocabulary lacks: first_piece "
            "pushes it to the token with which the student begins to write them, renormalized leaves it out."
        },
    )
    loss_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Tokens whose logits are held at a time; 256 on a CPU and 1024 elsewhere by default."},
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of from_pretrained for a teacher given as a checkpoint, as a dict or JSON: dtype, "
            "device_map, revision, load_in_4bit, load_in_8bit and others."
        },
    )
    non_finite_loss: str = field(
        default="stop",
        metadata={"help": "Reaction to a NaN or infinite loss: stop with an error, or skip the batch."},
    )
    hub_overwrite: bool = field(
        default=False, metadata={"help": "Whether to overwrite a model of another architecture on the Hub."}
    )
    include_num_input_tokens_seen: str | bool = field(
        default=True, metadata={"help": "Tokens to count and log: all (or true), non_padding, no (or false)."}
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        super().__post_init__()
        check_numbers(self, "alpha", "beta", "hidden_weight")
        check_positive(self, "temperature")
        if not 0 < self.jsd_weight < 1:
            raise ValueError(f"jsd_weight must lie between 0 and 1, got {self.jsd_weight}")
        for name, allowed in (
            ("divergence", tuple(DIVERGENCES)),
            ("hidden_loss", HIDDEN_LOSSES),
            ("dropped_tokens", DROPPED_TOKENS),
            ("non_finite_loss", NON_FINITE),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.loss_chunk_size is not None:
            check_integers(self, {"loss_chunk_size": 1})

    @property
    def has_teacher(self) -> bool:
        """Whether the loss needs a teacher."""
        return self.beta > 0 or self.hidden_weight > 0

    def chunk_size(self, on_cpu: bool) -> int:
        """Tokens whose logits the loss holds at a time."""
        return self.loss_chunk_size or default_chunk_size(on_cpu)

    def number_of_steps(self, blocks: int) -> int:
        """Optimizer steps of a training on so many blocks."""
        if self.max_steps >= 0:
            return self.max_steps
        in_an_epoch = math.ceil(blocks / (self.train_batch_size * self.gradient_accumulation_steps * self.world_size))
        return max(1, math.ceil(self.num_train_epochs * in_an_epoch))

    @property
    def loss_weights(self) -> LossWeights:
        """Weights of the parts of the loss."""
        return LossWeights(self.alpha, self.beta, self.temperature, self.divergence, self.jsd_weight)
