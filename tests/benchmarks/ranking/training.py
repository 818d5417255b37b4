"""The truth of a ranking study: perplexity on held-out text after a budget of distillation."""

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from hf_whittle import SubnetConfig
from hf_whittle.evaluation import cross_entropy, perplexity
from hf_whittle.fitness.probe import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def bfloat16(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    """Run matrix products in bfloat16. Weights in it are kept until the end, so that no training step may follow."""
    return torch.autocast("cpu", torch.bfloat16) if enabled else contextlib.nullcontext()


class Training(Probe):
    """A probe whose matrix products run in bfloat16 if `autocast` is true; weights stay in single precision."""

    def __init__(self, *args: Any, autocast: bool = False, **kwargs: Any):
        self.autocast = autocast
        super().__init__(*args, **kwargs)

    def _teacher_hidden_states(self) -> Any:
        with bfloat16(self.autocast):
            return super()._teacher_hidden_states()

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        student = self.student(subnet)
        with torch.enable_grad():
            self._train(student, self._steps(share))
        with bfloat16(self.autocast):
            return perplexity(cross_entropy(student, self.eval_ids, self.config.batch_size))

    def _loss(self, student: "PreTrainedModel", rows: slice) -> torch.Tensor:
        with bfloat16(self.autocast):
            return super()._loss(student, rows)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "autocast": self.autocast}
