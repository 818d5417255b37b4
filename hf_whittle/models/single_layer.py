"""One layer of a model, run alone, so that only its weights need be in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.dimensions import POSITIONS, VOCABULARY
from ..architectures.registry import get_architecture
from ..compat import attention_kernel, no_init_weights, set_attention_kernel
from ..subnet import SubnetConfig
from .activations import Activations, recorded_activations
from .source import Source
from .student import student_class, student_config


@dataclass(frozen=True)
class LayerOutput:
    """The output of one layer.

    Args:
        hidden_states (`torch.Tensor`): `(B, T, channels)`, after the layer.
        normalized (`torch.Tensor`): the same after the model's last norm.
        activations (`Activations`): inputs and outputs of the recorded modules.
    """

    hidden_states: torch.Tensor
    normalized: torch.Tensor
    activations: Activations


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
    """

    def __init__(self, source: Source, layer: int):
        config = source.config
        table = get_architecture(config)
        small = student_config(config, SubnetConfig.full(config).with_layers([layer]))
        small.vocab_size, small.tie_word_embeddings = 1, False  # it reads hidden states, not tokens
        set_attention_kernel(small, single_precision_attention(config))
        with no_init_weights():
            self.model: Any = student_class(small)(small).requires_grad_(False).eval()
        state_dict = {}
        for weight in table.weights:
            name = weight.name.format(layer=0)
            if weight.runs_along(POSITIONS):  # the hidden states have their positions
                state_dict[name] = torch.zeros_like(self.model.get_parameter(name))
            elif weight.exists(config) and not weight.runs_along(VOCABULARY):
                state_dict[name] = source.weight(weight.name, layer)
        self.model.load_state_dict(state_dict, strict=False, assign=True)
        self.model.to(source.device)
        self._name = f"{table.layers}.0"

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    @torch.no_grad()
    def __call__(self, hidden_states: torch.Tensor, recorded: Iterable[str] = ()) -> LayerOutput:
        """Run the layer.

        Args:
            hidden_states (`torch.Tensor`): `(B, T, channels)`, before the layer.
            recorded (`Iterable[str]`): modules to record inputs and outputs of.
        """
        recorded = list(recorded)
        with recorded_activations(self.model, recorded, [*recorded, self._name]) as activations:
            normalized = self.model.base_model(inputs_embeds=hidden_states, use_cache=False).last_hidden_state
        return LayerOutput(activations.outputs.pop(self._name), normalized, activations)
