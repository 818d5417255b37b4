"""Inputs and outputs of modules in a forward pass."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Activations:
    """Tensors that modules read and wrote, in single precision, by the modules' names.

    Args:
        inputs (`dict[str, torch.Tensor]`): the first argument of each module.
        outputs (`dict[str, torch.Tensor]`): its output, or the first entry of that.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def recorded_activations(
    model: nn.Module, inputs: Iterable[str] = (), outputs: Iterable[str] = ()
) -> Iterator[Activations]:
    """Record activations of the last forward pass inside the block.

    Args:
        model (`nn.Module`): the model.
        inputs (`Iterable[str]`): modules to record inputs of.
        outputs (`Iterable[str]`): modules to record outputs of.
    """
    activations = Activations()
    with ExitStack() as hooks:
        for name in inputs:
            hook = _record_input(activations, name)
            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        for name in outputs:
            hook = _record_output(activations, name)
            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield activations


def _record_input(activations: Activations, name: str) -> Any:
    def record(module: Any, arguments: Any, output: Any) -> None:
        activations.inputs[name] = arguments[0].float()

    return record


def _record_output(activations: Activations, name: str) -> Any:
    def record(module: Any, arguments: Any, output: Any) -> None:
        activations.outputs[name] = (output[0] if isinstance(output, tuple) else output).float()

    return record
