"""DistillationConfig: `TrainingArguments` with the weights of the distillation loss."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class DistillationConfig(TrainingArguments):
    """`TrainingArguments` plus the distillation loss `alpha * CE + beta * temperature**2 * KL(teacher || student)`.

    Defaults as in arXiv 2510.07227: full logits, forward KL.

    Raises:
        ValueError: if a weight is out of range.
    """

    alpha: float = field(default=0.2, metadata={"help": "Weight of cross-entropy; has no effect where beta is 0."})
    beta: float = field(
        default=0.8, metadata={"help": "Weight of the KL divergence from the teacher; 0 is plain pretraining."}
    )
    temperature: float = field(
        default=0.9, metadata={"help": "Temperature of both distributions in the KL divergence."}
    )
    loss_chunk_size: int = field(
        default=1024, metadata={"help": "Tokens whose distillation loss is computed at a time."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, got {self.temperature}")
        if self.label_smoothing_factor:
            raise ValueError("evaluation reports plain cross-entropy: label_smoothing_factor must be 0")
        if self.loss_chunk_size < 1:
            raise ValueError(f"loss_chunk_size must be at least 1, got {self.loss_chunk_size}")
