"""The weights and the configuration of a model, in memory or on disk, that students are extracted from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .placement import input_device, weights_of
from .weights import full_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Source:
    """A model as its weights and its configuration.

    Args:
        weights (`Mapping[str, torch.Tensor]`): all of its weights, by their names in the table.
        config (`PreTrainedConfig`): its configuration.
        device (`torch.device`): where computations with the weights run.
        dtype (`torch.dtype`): precision of a student for which no other is asked.
        generation_config (`GenerationConfig`, *optional*): given to students.
    """

    weights: Mapping[str, torch.Tensor]
    config: "PreTrainedConfig"
    device: torch.device
    dtype: torch.dtype = torch.float32
    generation_config: "GenerationConfig | None" = None

    def weight(self, name: str, layer: int = 0) -> torch.Tensor:
        """A weight of a layer in single precision, on the device; copied only if it has another or lies elsewhere.

        Args:
            name (`str`): name in the table, in which `{layer}` is filled in.
            layer (`int`, *optional*, defaults to 0): index of the layer.
        """
        return self.weights[name.format(layer=layer)].detach().to(self.device, torch.float32)


def source_of(model: "PreTrainedModel") -> Source:
    """The weights and the configuration of a whole model, offloaded weights included.

    Computations run where the model reads tokens.
    """
    generation_config = model.generation_config if model.can_generate() else None
    return Source(weights_of(model), full_config(model), input_device(model), model.dtype, generation_config)
