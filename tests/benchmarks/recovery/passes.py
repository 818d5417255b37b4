"""Passes of calibration text through a model: what its modules read and write."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_whittle.architectures.dimensions import CHANNELS, VOCABULARY
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.architectures.table import Weight

BATCH_TOKENS = 1024


class Seen(NamedTuple):
    """Hidden states that a module read and wrote, `(blocks, tokens, channels)`."""

    inputs: torch.Tensor
    outputs: torch.Tensor


def layers_of(model: Any) -> Any:
    return model.get_submodule(get_architecture(model.config).layers)


def head_of(config: Any) -> Weight:
    """The output matrix in the table."""
    return next(w for w in get_architecture(config).weights if w.is_matmul and VOCABULARY in w.outputs.dimensions)


def final_norm(model: Any) -> nn.Module:
    """The norm that the output matrix reads."""
    return model.get_submodule(str(head_of(model.config).norm))


def writers(config: Any) -> list[Weight]:
    """The matrices in a layer whose outputs are added to the hidden states: of attention, then of the MLP."""
    return [w for w in get_architecture(config).weights if w.is_matmul and w.outputs.dimensions == (CHANNELS,)]


def module_of(model: Any, weight: Weight, layer: int | None = None) -> Any:
    return model.get_submodule(weight.module.format(layer=layer))


def split(input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return input_ids.split(max(1, BATCH_TOKENS // input_ids.shape[1]))


@contextlib.contextmanager
def observed(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """A dictionary of what each module last read and wrote, filled by every forward pass inside the block."""
    found: dict[str, Seen] = {}
    handles = [module.register_forward_hook(partial(_keep, found, name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: dict[str, Seen], name: str, module: Any, args: tuple[torch.Tensor, ...], output: Any) -> None:
    found[name] = Seen(args[0], output[0] if isinstance(output, tuple) else output)


def batches(model: Any, input_ids: torch.Tensor, modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Run a model without its head, and give what the modules read and wrote, a batch at a time."""
    with observed(modules) as found:
        for batch in split(input_ids):
            with torch.no_grad():
                model.base_model(input_ids=batch, use_cache=False)
            yield found


class _StopError(Exception):
    """Raised to end a forward pass before its first layer."""


class Stream:
    """Hidden states of calibration text on their way through layers, which the caller runs one at a time.

    Args:
        model: the model whose embedding makes the hidden states before the first layer.
        input_ids (`torch.Tensor`): calibration text, `(blocks, block_size)`.

    Attributes:
        states (`list[torch.Tensor]`): hidden states, a batch at a time.
    """

    def __init__(self, model: Any, input_ids: torch.Tensor):
        self.states: list[torch.Tensor] = []
        self.arguments: list[dict[str, Any]] = []
        handle = layers_of(model)[0].register_forward_pre_hook(self._catch, with_kwargs=True)
        try:
            for batch in split(input_ids):
                with contextlib.suppress(_StopError), torch.no_grad():
                    model.base_model(input_ids=batch, use_cache=False)
        finally:
            handle.remove()

    def _catch(self, module: Any, args: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> None:
        self.states.append(args[0])
        self.arguments.append(arguments)
        raise _StopError

    @torch.no_grad()
    def run(self, module: Any) -> Iterator[torch.Tensor]:
        """Outputs of a module that is called like a layer, a batch at a time."""
        for states, arguments in zip(self.states, self.arguments, strict=True):
            output = module(states, **arguments)
            yield output[0] if isinstance(output, tuple) else output
