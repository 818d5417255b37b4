"""Inputs and outputs of modules in a forward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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


class _AllRecorded(Exception):  # noqa: N818, it reports no error
    """Ends a forward pass that has nothing more to record."""


@contextmanager
def recorded_activations(
    model: nn.Module, inputs: Iterable[str] = (), outputs: Iterable[str] = (), stop: bool = False
) -> Iterator[Activations]:
    """Record activations of the last forward pass inside the block.

    Args:
        model (`nn.Module`): the model.
        inputs (`Iterable[str]`): modules to record inputs of.
        outputs (`Iterable[str]`): modules to record outputs of.
        stop (`bool`, *optional*, defaults to `False`): whether the block ends as soon as all are recorded, in the
            middle of the forward pass.
    """
    activations, inputs, outputs = Activations(), set(inputs), set(outputs)

    def stop_if_all_recorded() -> None:
        if stop and activations.inputs.keys() == inputs and activations.outputs.keys() == outputs:
            raise _AllRecorded

    def record_input(name: str) -> Callable[..., None]:
        def record(module: Any, arguments: Any) -> None:
            activations.inputs[name] = arguments[0].float()
            stop_if_all_recorded()

        return record

    def record_output(name: str) -> Callable[..., None]:
        def record(module: Any, arguments: Any, output: Any) -> None:
            activations.outputs[name] = (output[0] if isinstance(output, tuple) else output).float()
            stop_if_all_recorded()

        return record

    with ExitStack() as hooks:
        for name in inputs:
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(record_input(name)).remove)
        for name in outputs:
            hooks.callback(model.get_submodule(name).register_forward_hook(record_output(name)).remove)
        with suppress(_AllRecorded):
            yield activations
