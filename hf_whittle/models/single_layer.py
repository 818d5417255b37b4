"""One layer of a model, or its embedding, run alone, so that only its weights need be in memory."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..architectures.dimensions import POSITIONS
from ..architectures.registry import get_architecture
from ..compat.transformers import attention_kernel, no_init_weights, set_attention_kernel
from ..subnet import SubnetConfig
from .activations import Activations, recorded_activations
from .source import Source
from .student import student_class, student_config


def single_precision_attention(config: PreTrainedConfig) -> str | None:
    """The attention kernel of a model, or `"sdpa"` where that does not run in single precision."""
    kernel = attention_kernel(config)
    return "sdpa" if kernel is not None and "flash" in kernel else kernel


class SingleLayer:
    """A model with one of the layers of another, in single precision; weights of that precision are shared.

    Its modules have the names of layer 0.

    Args:
        source (`Source`): the whole model.
        layer (`int`): index of the layer.
        bf16 (`bool`, *optional*, defaults to `False`): whether matrix products run in bfloat16.
    """

    def __init__(self, source: Source, layer: int, bf16: bool = False):
        table = get_architecture(source.config)
        self.model = _one_layer(source.config, layer)
        state_dict = {
            weight.name.format(layer=0): source.weight(weight.name, layer)
            for weight in table.weights
            if weight.exists(source.config) and not weight.is_looked_up
        }
        self.model.load_state_dict(state_dict, strict=False, assign=True)
        self.model.to(source.device)
        self._name, self._autocast = f"{table.layers}.0", torch.autocast(source.device.type, torch.bfloat16, bf16)

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states `(B, T, channels)` after the layer, from those before it."""
        return self.recorded(hidden_states, outputs=[self._name]).outputs[self._name]

    @torch.no_grad()
    def recorded(
        self, hidden_states: torch.Tensor, inputs: Iterable[str] = (), outputs: Iterable[str] = ()
    ) -> Activations:
        """Run the layer until all of some modules have run.

        Args:
            hidden_states (`torch.Tensor`): `(B, T, channels)`, before the layer.
            inputs (`Iterable[str]`): modules to record inputs of.
            outputs (`Iterable[str]`): modules to record outputs of.
        """
        with recorded_activations(self.model, inputs, outputs, stop=True) as activations, self._autocast:
            self.model.base_model(inputs_embeds=hidden_states, use_cache=False)
        return activations


class Embedding:
    """The embedding of a model, in single precision: its hidden states before the first layer.

    Args:
        source (`Source`): the model.
    """

    def __init__(self, source: Source):
        table = get_architecture(source.config)
        self._device, self._model = source.device, _one_layer(source.config, 0)
        del self._model.get_submodule(table.layers)[0]
        for weight in table.weights:
            if not weight.is_matmul and weight.is_looked_up:
                tensor = source.weight(weight.name)
                self._model.get_submodule(weight.module).weight = nn.Parameter(tensor, requires_grad=False)
            elif weight.norm is not None and not weight.in_layer:  # the output matrix
                self._model.set_submodule(weight.norm, nn.Identity())
        self._model.to(source.device)

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states `(B, T, channels)` of tokens `(B, T)`."""
        return self._model.base_model(input_ids=input_ids.to(self._device), use_cache=False).last_hidden_state


def _one_layer(config: PreTrainedConfig, layer: int) -> Any:
    """A model with one of the layers of another, without weights of its own; positions add nothing."""
    small = student_config(config, SubnetConfig.full(config).with_layers([layer]))
    small.vocab_size, small.tie_word_embeddings, small.pad_token_id = 1, False, None  # it reads no tokens
    set_attention_kernel(small, single_precision_attention(config))
    with no_init_weights():
        model = student_class(small)(small).requires_grad_(False).eval()
    for weight in get_architecture(config).weights:
        if weight.runs_along(POSITIONS):
            model.get_parameter(weight.name).zero_()
    return model
