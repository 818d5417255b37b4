"""The output layer of a causal language model, and a function that runs in its place inside the forward pass."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..architectures.registry import get_architecture, is_known
from ..compat.sharding import is_partitioned
from ..compat.torch import is_compiled_in_place
from .elastic import ElasticLinear
from .evaluating import evaluating
from .student import student_class

_PLAIN = (nn.Linear.forward, ElasticLinear.forward)
"""Forward methods of linear layers and nothing else; FSDP2 makes a layer an instance of another class that has them."""


@dataclass(frozen=True)
class Head:
    """An output matrix: logits are `hidden_states @ weight.T + bias`.

    Args:
        weight (`torch.Tensor`): `(V, C)`.
        bias (`torch.Tensor`, *optional*): `(V,)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries of the vocabulary."""
        return self.weight.shape[0]

    def __getitem__(self, entries: torch.Tensor | slice) -> "Head":
        """The head restricted to some entries."""
        return Head(self.weight[entries], None if self.bias is None else self.bias[entries])

    def first(self, size: int) -> "Head":
        """The head restricted to the first `size` entries."""
        return self if size >= self.size else self[:size]

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states `(N, C)`, on the device and in the type of the matrix."""
        return F.linear(hidden_states.to(self.weight), self.weight, self.bias)


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


def default_chunk_size(on_cpu: bool) -> int:
    """Rows whose logits are held at a time."""
    return 256 if on_cpu else 1024


def output_layer(model: nn.Module) -> OutputLayer | None:
    """Return the linear layer that gives a model's logits; `None` if there is no such layer.

    There is none in a model that caps its logits, or scales them without a table that says so, or whose output layer
    has adapters or is quantized. To find out, a model of a class that is not known runs on two tokens; if DeepSpeed
    shards its weights, an architecture with a table is trusted.

    Args:
        model (`nn.Module`): the unwrapped model; all processes that hold shards of it must call this together.
    """
    whole: Any = model
    layer = _plain_layer(whole)
    if layer is None or any(map(is_partitioned, whole.parameters())):
        return layer if _has_table(whole) else None
    head = layer.module
    if head.weight.is_meta:  # offloaded: its weight is loaded only during its own forward
        return None
    if _has_stock_forward(whole):
        return layer
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with evaluating(whole), torch.no_grad():
            logits = whole(input_ids=torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)).logits
    finally:
        hook.remove()
    is_so = len(seen) == 1 and seen[0].shape == logits.shape and torch.equal((seen[0] * layer.scale).to(logits), logits)
    return layer if is_so else None


def known_output_layer(model: Any) -> OutputLayer | None:
    """Return the output layer of a model whose class is that of its table; `None` for any other.

    The model is not run, as it is for `output_layer`. A compiled model has none either, which would be compiled again
    for every function in place of its layer.
    """
    if is_compiled_in_place(model) or not _has_stock_forward(model):
        return None
    layer = _plain_layer(model)
    return None if layer is None or layer.module.weight.is_meta else layer


def _plain_layer(model: Any) -> OutputLayer | None:
    """A model's output embeddings, if they are a linear layer and nothing caps what it gives."""
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(type(head), "forward", None) not in _PLAIN:
        return None
    scale = logit_scale(model)
    return None if scale is None or (scale != 1 and head.bias is not None) else OutputLayer(head, scale)


def _has_stock_forward(model: Any) -> bool:
    """Whether a model runs the forward of its architecture's class, as super-networks and students do.

    accelerate wraps that of a model that a device map has placed.
    """
    if not _has_table(model) or ("forward" in vars(model) and not getattr(model, "hf_device_map", None)):
        return False
    return getattr(type(model), "forward", None) is student_class(model.config).forward


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
