"""Run a function in place of the output layer, inside the forward pass of a causal language model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..architectures.registry import get_architecture, has_architecture
from ..compat import is_partitioned
from ..evaluation import evaluating
from ..models.elastic import ElasticLinear
from .targets import DenseTargets, Head

_PLAIN = (nn.Linear.forward, ElasticLinear.forward)
"""Forward methods of linear layers and nothing else; FSDP2 makes a layer an instance of another class that has them."""


def output_module(model: nn.Module) -> nn.Module | None:
    """Return the linear layer whose output, unchanged, is a model's logits; `None` if there is no such layer.

    There is none in a model that scales or caps its logits, or whose output layer has adapters or is quantized. To find
    out, the model runs on two tokens; if DeepSpeed shards its weights, an architecture with a table is trusted.

    Args:
        model (`nn.Module`): the unwrapped model; all processes that hold shards of it must call this together.
    """
    whole: Any = model
    head: Any = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    if getattr(type(head), "forward", None) not in _PLAIN:
        return None
    if any(map(is_partitioned, whole.parameters())):
        return head if _has_plain_logits(whole.config) else None
    if head.weight.is_meta:  # offloaded: its weight is loaded only during its own forward
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


def _has_plain_logits(config: Any) -> bool:
    """Whether logits are the output of the last matrix, by the table of an architecture."""
    if not has_architecture(config):
        return False
    capped_if = get_architecture(config).capped_if
    return capped_if is None or not getattr(config, capped_if)


@contextlib.contextmanager
def in_place_of(head: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block, the model's forward returns `function(hidden_states)` as its logits.

    `function` runs within the model's forward, where wrappers that shard weights have gathered them.
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
    """Return the output matrix of the layer that `output_module` found, gathered if it is sharded."""
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


def dense_targets(run: Callable[..., Any], head: nn.Module | None, **inputs: Any) -> DenseTargets:
    """Run a teacher on a batch; targets of all rows, from hidden states if it has an output layer, else from logits.

    Args:
        run (`Callable`): the teacher, or a wrapper of it.
        head (`nn.Module`, *optional*): its output layer, found by `output_module`.
        inputs: arguments of its forward.
    """
    with contextlib.nullcontext() if head is None else in_place_of(head, lambda hidden_states: hidden_states):
        outputs = run(**inputs).logits.flatten(0, 1)
    return DenseTargets(outputs, None if head is None else head_of(head))
