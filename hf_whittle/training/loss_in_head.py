"""LossInHead: a `Trainer` whose loss takes the place of the output layer, so that logits of a batch are never held."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ..compat.transformers import has_stock_loss
from ..loss.divergences import DistillationLoss, LossWeights, labels_of_rows
from ..loss.fused import fused_distillation_loss
from ..loss.targets import Targets
from ..models.heads import Head, OutputLayer, default_chunk_size, head_of, in_place_of, output_layer

_TEXT_ALONE = LossWeights(alpha=1.0, beta=0.0)


class LossInHead(Trainer):
    """A `Trainer` that computes cross-entropy, and other losses, in chunks of tokens inside the model's forward.

    It does so where the model's output layer is a plain matrix, its own loss is that of causal language models, and
    nothing but the loss is asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._chunk_size = default_chunk_size(self.args.device.type == "cpu")
        self._loss: DistillationLoss | None = None  # result of the forward pass that runs now
        self._given: tuple[Targets | None, torch.Tensor, LossWeights] | None = None  # targets, labels and weights of it
        self._plain_head: tuple[Any, Any] = None, None  # the model's output layer; the same if it can be replaced
        self._predicts_loss_alone = False  # in the evaluation that runs now
        self._compute_in_head = torch.compiler.disable(self._compute_in_head)  # type: ignore[method-assign]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Evaluate on a batch as `Trainer` does, without its logits where the loss is all that is asked for."""
        self._predicts_loss_alone = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._predicts_loss_alone = False

    def text_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        needs_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        """Cross-entropy alone, and the model's outputs, which are empty unless they are needed.

        Args:
            model (`nn.Module`): the model, or a wrapper of it.
            inputs (`dict[str, Any]`): a batch.
            needs_outputs (`bool`): whether the caller wants logits; an evaluation that predicts the loss alone does
                not, whatever this says.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): divisor of the summed loss.
        """
        needs_outputs = needs_outputs and not self._predicts_loss_alone
        is_plain = not needs_outputs and self.compute_loss_func is None and "labels" in inputs
        whole: Any = self.accelerator.unwrap_model(model)
        layer = self._output_layer(whole) if is_plain and _is_cross_entropy(whole) else None
        if layer is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return loss, outputs
        given = {**inputs, "use_cache": False}
        labels = labels_of_rows(given.pop("labels"))
        _, total, parts = self._run(model, given, layer, None, labels, _TEXT_ALONE)
        return total / self._normalizer(parts.rows, num_items_in_batch), {}

    def _run(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        layer: OutputLayer | None,
        targets: Targets | None,
        labels: torch.Tensor,
        weights: LossWeights,
    ) -> tuple[Any, torch.Tensor, DistillationLoss]:
        """Run a model with a loss in place of its output layer, or after it if there is none.

        Returns the model's outputs, the summed loss that carries the gradient, and its parts.
        """
        if layer is None:
            outputs = model(**inputs)
            loss = self._compute(outputs.logits.flatten(0, 1), None, targets, labels, weights)
            return outputs, loss.total, loss
        self._given = targets, labels, weights
        try:
            with in_place_of(layer, self._compute_in_head):
                outputs = model(**inputs)
            assert self._loss is not None
            return outputs, outputs.logits.sum(), self._loss
        finally:
            self._given = self._loss = None

    def _output_layer(self, model: Any) -> OutputLayer | None:
        """The model's output layer if a loss can replace it; looked up again if the model was exchanged."""
        current = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if self._plain_head[0] is not current:
            self._plain_head = current, output_layer(model)
        return self._plain_head[1]

    def _compute_in_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the summed loss as the model's logits; runs in place of its output layer."""
        assert self._given is not None
        self._loss = self._compute(hidden_states.flatten(0, 1), head_of(self._plain_head[1]), *self._given)
        return self._loss.total.reshape(1, 1, 1)

    def _compute(
        self,
        hidden_states: torch.Tensor,
        head: Head | None,
        targets: Targets | None,
        labels: torch.Tensor,
        weights: LossWeights,
    ) -> DistillationLoss:
        return fused_distillation_loss(hidden_states, head, targets, labels, weights, self._chunk_size)

    def _normalizer(self, rows: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Divisor of the summed loss, by which gradients are means over all tokens of an optimizer step."""
        if num_items_in_batch is None:
            return rows.clamp(min=1)
        items = torch.as_tensor(num_items_in_batch).flatten()[0].clamp(min=1)
        # Processes average their gradients, but the number of tokens is the sum over them.
        processes = self.accelerator.num_processes // self.get_tp_size()
        return items / processes if self.args.average_tokens_across_devices else items


def _is_cross_entropy(model: Any) -> bool:
    """Whether the loss that a model makes of labels is their cross-entropy alone; mixtures of experts can add one."""
    return has_stock_loss(model) and not getattr(getattr(model, "config", None), "output_router_logits", False)
