"""Reach what a causal language model multiplies with its output matrix, through its own forward."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..compat import is_partitioned
from ..evaluation import evaluating
from ..models.architecture import has_architecture
from ..models.elastic import ElasticLinear
from .targets import Head


def output_module(model: nn.Module) -> nn.Module | None:
    """The linear layer whose output, unchanged, is a model's logits; `None` where there is no such layer.

    A model that scales or caps its logits has none, nor has one whose output layer is adapted or quantized. Runs the
    model on two tokens to see, unless its weights are spread by DeepSpeed: then a known architecture is believed.

    Args:
        model (`nn.Module`): unwrapped; processes that share its weights must all call this.
    """
    whole: Any = model
    head: Any = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    if type(head) not in (nn.Linear, ElasticLinear):
        return None
    if any(map(is_partitioned, whole.parameters())):
        return head if has_architecture(whole.config) else None
    if head.weight.is_meta:  # offloaded: it is there during its own forward alone
        return None
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with evaluating(whole), torch.no_grad():
            logits = whole(input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)).logits
    finally:
        hook.remove()
    is_plain = len(seen) == 1 and seen[0].shape == logits.shape and torch.equal(seen[0].to(logits), logits)
    return head if is_plain else None


@contextlib.contextmanager
def in_place_of(head: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block, the model's forward returns what `function` makes of the states, instead of logits.

    The call stays inside the model's forward, where a wrapper that shards weights has them at hand.
    """
    before = vars(head).get("forward")
    head.forward = function
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


def head_of(module: nn.Module) -> Head:
    """The output matrix of `output_module`; gathered, if its shards lie on several processes."""
    weight: Any = module.weight
    bias: Any = module.bias
    if is_partitioned(weight) and weight.numel() == 0:  # else DeepSpeed has just gathered it for the forward
        import deepspeed

        parts = [part for part in (weight, bias) if part is not None]
        with deepspeed.zero.GatheredParameters(parts):
            return Head(*(part.detach().clone() for part in parts))
    if isinstance(module, ElasticLinear):
        weight, bias = module.in_use("weight"), None if module.bias is None else module.in_use("bias")
    whole = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in (weight, bias)]
    return Head(*whole)
