"""Run a function in place of the output layer, inside the forward pass of a causal language model."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..architectures.registry import get_architecture, is_known
from ..compat import is_partitioned
from ..evaluation import evaluating
from ..models.elastic import ElasticLinear
from .targets import DenseTargets, Head

_PLAIN = (nn.Linear.forward, ElasticLinear.forward)
"""Forward methods of linear layers and nothing else; FSDP2 makes a layer an instance of another class that has them."""


@dataclass(frozen=True)
class OutputLayer:
    """A linear layer whose output, times a constant, is a model's logits.

    Args:
        module (`nn.Linear`): the layer; without a bias unless `scale` is 1.
        scale (`float`): the constant.
    """

    module: Any
    scale: float = 1.0


def _has_table(model: Any) -> bool:
    return is_known(getattr(getattr(model, "config", None), "model_type", None))


def logit_scale(model: Any) -> float | None:
    """The constant by which a model's table multiplies logits, 1 without a table; `None` if logits are capped."""
    return get_architecture(model.config).logit_factor(model.config) if _has_table(model) else 1.0


def output_layer(model: nn.Module) -> OutputLayer | None:
    """Return the linear layer that gives a model's logits; `None` if there is no such layer.

    There is none in a model that caps its logits, or scales them without a table that says so, or whose output layer
    has adapters or is quantized. To find out, the model runs on two tokens; if DeepSpeed shards its weights, an
    architecture with a table is trusted.

    Args:
        model (`nn.Module`): the unwrapped model; all processes that hold shards of it must call this together.
    """
    whole: Any = model
    head: Any = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    if getattr(type(head), "forward", None) not in _PLAIN:
        return None
    scale = logit_scale(whole)
    if scale is None or (scale != 1 and head.bias is not None):
        return None
    layer = OutputLayer(head, scale)
    if any(map(is_partitioned, whole.parameters())):
        return layer if _has_table(whole) else None
    if head.weight.is_meta:  # offloaded: its weight is loaded only during its own forward
        return None
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with evaluating(whole), torch.no_grad():
            logits = whole(input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)).logits
    finally:
        hook.remove()
    is_so = len(seen) == 1 and seen[0].shape == logits.shape and torch.equal((seen[0] * scale).to(logits), logits)
    return layer if is_so else None


@contextlib.contextmanager
def in_place_of(layer: OutputLayer, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block, the model's forward returns `function(hidden_states)` as its logits.

    `function` runs within the model's forward, where wrappers that shard weights have gathered them. Its hidden states
    are those before the layer times the scale of logits, so that their product with the layer's matrix is the logits.
    """
    head, scale = layer.module, layer.scale
    before = vars(head).get("forward")
    head.forward = function if scale == 1 else lambda states: function(states * scale) / scale
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


def head_of(layer: OutputLayer) -> Head:
    """Return the output matrix of the layer that `output_layer` found, gathered if it is sharded."""
    module = layer.module
    weight: Any = module.weight
    bias: Any = module.bias
    if is_partitioned(weight) and weight.numel() == 0:  # in a forward pass, DeepSpeed has gathered it already
        import deepspeed

        parts = [part for part in (weight, bias) if part is not None]
        with deepspeed.zero.GatheredParameters(parts):
            return Head(*(part.detach().clone() for part in parts))
    if isinstance(module, ElasticLinear):
        weight, bias = module.in_use("weight"), None if module.bias is None else module.in_use("bias")
    whole = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in (weight, bias)]
    return Head(*whole)


def dense_targets(run: Callable[..., Any], layer: OutputLayer | None, **inputs: Any) -> DenseTargets:
    """Run a teacher on a batch; targets of all rows, from hidden states if it has an output layer, else from logits.

    Args:
        run (`Callable`): the teacher, or a wrapper of it.
        layer (`OutputLayer`, *optional*): its output layer, found by `output_layer`.
        inputs: arguments of its forward.
    """
    with contextlib.nullcontext() if layer is None else in_place_of(layer, lambda hidden_states: hidden_states):
        outputs = run(**inputs).logits.flatten(0, 1)
    return DenseTargets(outputs, None if layer is None else head_of(layer))
