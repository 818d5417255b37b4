"""Tables of architectures: which axis of which weight runs along which dimension of a subnet.

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
"""For each `model_type`, the folder under `hf_whittle.models` that holds its table."""


class Dimension(Enum):
    """A dimension that a subnet can keep a part of; `VOCABULARY` is always kept whole."""

    VOCABULARY = "vocab_size"
    CHANNELS = "hidden_size"
    HEADS = "num_attention_heads"
    NEURONS = "intermediate_size"


@dataclass(frozen=True)
class Axis:
    """An axis of a weight: entry `i` of the dimension takes the rows `i * block` to `(i + 1) * block - 1`.

    A `heads_wide` axis has `block` rows for each of the `head_dim` channels of a head.
    """

    dimension: Dimension
    block: int = 1
    heads_wide: bool = False

    def block_size(self, head_dim: int) -> int:
        return self.block * head_dim if self.heads_wide else self.block


@dataclass(frozen=True)
class Weight:
    """A weight of an architecture.

    Args:
        name (`str`): its name in the state dict, with `{layer}` for the index of the layer.
        axes (`tuple[Axis, ...]`): one for each axis of the tensor.
        is_matmul (`bool`): whether tokens are multiplied with it; in an embedding they are looked up.
        exists_if (`str`, *optional*): attribute of the configuration that must be true for the weight to exist.
        shared_if (`str`, *optional*): attribute of the configuration that, if true, ties the weight to the embedding.
        file_name (`str`, *optional*): its name in files, where that differs from the state dict.
        norm (`str`, *optional*): the norm whose output the weight multiplies.
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
    """The table of an architecture.

    Args:
        weights (`tuple[Weight, ...]`): every weight.
        layers (`str`): name of the list of layers in the model.
        parallel_if (`str`, *optional*): attribute of the configuration that, if true, has attention and MLP read the
            same hidden states; otherwise the MLP reads what attention wrote.
    """

    weights: tuple[Weight, ...]
    layers: str
    parallel_if: str | None = None

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Attributes of the configuration on which weights depend."""
        names = {name for weight in self.weights for name in (weight.exists_if, weight.shared_if) if name is not None}
        return tuple(sorted(names))


def get_architecture(source: "PreTrainedConfig | str") -> Architecture:
    """The table of a configuration or a `model_type`.

    Raises:
        ArchitectureError: if there is no table for it.
    """
    return architecture_module(source, "table").ARCHITECTURE


def architecture_module(source: "PreTrainedConfig | str", name: str) -> Any:
    """The module `name` in the folder of an architecture, imported when first asked for."""
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
    """Whether the architecture of a configuration has a table."""
    return config.model_type in ARCHITECTURES


def head_dim(config: "PreTrainedConfig") -> int:
    """Number of channels of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
