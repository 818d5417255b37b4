"""What a table of an architecture is: which axis of which weight runs along which dimension of a subnet.

Slicing, extraction and counting all read the table; nothing else knows where a dimension lies in a weight.
"""

import importlib
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = {"gpt_neox": "gpt_neox", "whittle_gpt_neox": "gpt_neox"}
"""Folder under `hf_whittle.models` that holds the table of a `model_type`."""


class Dimension(Enum):
    """What a subnet can keep a part of, or, for `VOCABULARY`, keeps whole."""

    VOCABULARY = "vocab_size"
    CHANNELS = "hidden_size"
    HEADS = "num_attention_heads"
    NEURONS = "intermediate_size"


@dataclass(frozen=True)
class Axis:
    """An axis of a weight: entry `i` of the dimension is the rows `i * block` to `(i + 1) * block - 1`.

    `heads_wide` axes hold `block` rows for each of the `head_dim` channels of a head.
    """

    dimension: Dimension
    block: int = 1
    heads_wide: bool = False

    def block_size(self, head_dim: int) -> int:
        return self.block * head_dim if self.heads_wide else self.block


@dataclass(frozen=True)
class Weight:
    """A weight: its axes, and what multiplies them.

    Args:
        name (`str`): name in the state dict, `{layer}` for the layer.
        axes (`tuple[Axis, ...]`): one for each axis of the tensor.
        is_matmul (`bool`): whether a token is multiplied with it; an embedding is looked up.
        exists_if (`str`, *optional*): attribute of the configuration that must be true for the weight to exist.
        shared_if (`str`, *optional*): attribute of the configuration under which the weight is another one's tensor.
        file_name (`str`, *optional*): its name in files, where that differs from the state dict.
        norm (`str`, *optional*): the norm whose output it multiplies.
    """

    name: str
    axes: tuple[Axis, ...]
    is_matmul: bool = False
    exists_if: str | None = None
    shared_if: str | None = None
    file_name: str | None = None
    norm: str | None = None

    @property
    def in_layer(self) -> bool:
        return "{layer}" in self.name

    def exists(self, config: "PreTrainedConfig") -> bool:
        return self.exists_if is None or bool(getattr(config, self.exists_if))

    def is_shared(self, config: "PreTrainedConfig") -> bool:
        return self.shared_if is not None and bool(getattr(config, self.shared_if))


@dataclass(frozen=True)
class Architecture:
    """The table of an architecture and the names its modules go by."""

    weights: tuple[Weight, ...]
    layers: str
    """Name of the list of layers in the model."""
    parallel_if: str | None = None
    """Attribute of the configuration under which attention and MLP read the same stream; else the MLP comes after."""

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Attributes of the configuration on which weights depend."""
        names = {name for weight in self.weights for name in (weight.exists_if, weight.shared_if) if name is not None}
        return tuple(sorted(names))


def get_architecture(source: "PreTrainedConfig | str") -> Architecture:
    """The table for a model configuration or a `model_type`.

    Raises:
        ArchitectureError: if there is none.
    """
    return architecture_module(source, "table").ARCHITECTURE


def architecture_module(source: "PreTrainedConfig | str", name: str) -> Any:
    """The module `name` of the architecture's folder under `hf_whittle.models`."""
    return _module(source if isinstance(source, str) else source.model_type, name)


@lru_cache
def _module(model_type: str, name: str) -> Any:
    check_model_type(model_type)
    return importlib.import_module(f"hf_whittle.models.{ARCHITECTURES[model_type]}.{name}")


def check_model_type(model_type: str | None, source: object = None) -> None:
    """Raise `ArchitectureError` unless there is a table for `model_type`."""
    if model_type not in ARCHITECTURES:
        of = f" of {source}" if source else ""
        raise ArchitectureError(
            f"the architecture{of} is {model_type!r}; hf_whittle knows {sorted(ARCHITECTURES)}: "
            "use a GPT-NeoX or Pythia checkpoint"
        )


def has_architecture(config: "PreTrainedConfig") -> bool:
    """Whether there is a table for a configuration."""
    return config.model_type in ARCHITECTURES


def head_dim(config: "PreTrainedConfig") -> int:
    """Channels of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
