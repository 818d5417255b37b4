"""Run a model a layer at a time, so that only one layer's weights need be at hand."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..compat import attention_kernel, no_init_weights, set_attention_kernel
from ..subnet import SubnetConfig
from .architecture import Dimension, architecture_module, get_architecture


@dataclass(frozen=True)
class Pass:
    """What one layer did with a stream.

    Args:
        stream (`torch.Tensor`): `(B, T, channels)`, after the layer.
        final (`torch.Tensor`): the same, normalised by the model's last norm.
        inputs, outputs (`dict[str, torch.Tensor]`): of the modules that were asked for.
    """

    stream: torch.Tensor
    final: torch.Tensor
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def single_precision_attention(config: PreTrainedConfig) -> str | None:
    """The attention kernel of a model, or one that takes single precision where that does not."""
    kernel = attention_kernel(config)
    return "sdpa" if kernel is not None and "flash" in kernel else kernel


class SingleLayer:
    """A model of one of the layers of another, in single precision; single precision weights are shared.

    Modules go by their names in layer 0.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the whole model, by the names of the table.
        config (`PreTrainedConfig`): its configuration.
        layer (`int`): the layer.
        device (`torch.device`): where it runs.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], config: PreTrainedConfig, layer: int, device: torch.device):
        architecture, table = architecture_module(config, "student"), get_architecture(config)
        small = architecture.student_config(config, SubnetConfig.full(config).with_layers([layer]))
        small.vocab_size, small.tie_word_embeddings = 1, False  # streams go in and come out, not tokens
        set_attention_kernel(small, single_precision_attention(config))
        with no_init_weights():
            self.model: Any = architecture.student_class(small)(small).requires_grad_(False).eval()
        state = {
            weight.name.format(layer=0): weights[weight.name.format(layer=layer)].detach().to(device, torch.float32)
            for weight in table.weights
            if weight.exists(config) and all(axis.dimension is not Dimension.VOCABULARY for axis in weight.axes)
        }
        self.model.load_state_dict(state, strict=False, assign=True)
        self.model.to(device)
        self._layer = self.model.get_submodule(table.layers)[0]

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    @torch.no_grad()
    def __call__(self, stream: torch.Tensor, watched: Iterable[str] = ()) -> Pass:
        """Run the layer.

        Args:
            stream (`torch.Tensor`): `(B, T, channels)`, before the layer.
            watched (`Iterable[str]`): modules whose inputs and outputs are wanted.
        """
        inputs: dict[str, torch.Tensor] = {}
        outputs: dict[str, torch.Tensor] = {}

        def watch(name: str) -> Any:
            def keep(module: Any, arguments: Any, output: Any) -> None:
                inputs[name] = arguments[0]
                outputs[name] = output[0] if isinstance(output, tuple) else output

            return keep

        with ExitStack() as hooks:
            for name in watched:
                hooks.callback(self.module(name).register_forward_hook(watch(name)).remove)
            hooks.callback(self._layer.register_forward_hook(watch("layer")).remove)
            final = self.model.base_model(inputs_embeds=stream, use_cache=False).last_hidden_state
        return Pass(outputs.pop("layer"), final, inputs, outputs)
