"""Tables of architectures: axes, weights, and how configurations count the dimensions.

Slicing, extraction and counting all read the table; nothing else knows where a dimension lies in a weight.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .dimensions import LAYERS, VOCABULARY, Dimension

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Sizes = Mapping[Dimension, int]
"""Size of each dimension in one layer; dimensions that all layers share have the same size in every layer."""


@dataclass(frozen=True)
class Axis:
    """An axis of a weight: the product of its factors, in order, the last one running fastest.

    A fused matrix of queries, keys and values by heads is `Axis(HEADS, 3, HEAD_CHANNELS)`.

    Args:
        factors (`Dimension` or `int`): dimensions, and sizes that are always kept whole.
    """

    factors: tuple[Dimension | int, ...]

    def __init__(self, *factors: Dimension | int):
        object.__setattr__(self, "factors", factors)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions among the factors."""
        return tuple(factor for factor in self.factors if isinstance(factor, Dimension))

    def factor_sizes(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(sizes[factor] if isinstance(factor, Dimension) else factor for factor in self.factors)

    def size(self, sizes: Sizes) -> int:
        return math.prod(self.factor_sizes(sizes))


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
        norm_after (`str`, *optional*): the norm that its output passes before it is added to the hidden states.
        is_transposed (`bool`): whether a matrix has its inputs along the first axis.
    """

    name: str
    axes: tuple[Axis, ...]
    is_matmul: bool = False
    exists_if: str | None = None
    shared_if: str | None = None
    file_name: str | None = None
    norm: str | None = None
    norm_after: str | None = None
    is_transposed: bool = False

    @property
    def in_layer(self) -> bool:
        return "{layer}" in self.name

    @property
    def module(self) -> str:
        """Name of its module."""
        return self.name.rpartition(".")[0]

    @property
    def is_norm(self) -> bool:
        """Whether a norm scales by it; one of each head may run along heads and their channels."""
        return self.name.endswith(".weight") and not self.is_matmul and not self.is_looked_up

    @property
    def is_looked_up(self) -> bool:
        """Whether it has a row for each token or position."""
        return any(dimension.is_looked_up for axis in self.axes for dimension in axis.dimensions)

    @property
    def outputs(self) -> Axis:
        """The axis of a matrix along which its outputs run."""
        return self.axes[self.output_dim]

    @property
    def inputs(self) -> Axis:
        """The axis of a matrix along which its inputs run."""
        return self.axes[1 - self.output_dim]

    @property
    def output_dim(self) -> int:
        """Number of the axis of a matrix along which its outputs run."""
        return 1 if self.is_transposed else 0

    def runs_along(self, dimension: Dimension) -> bool:
        return any(dimension in axis.dimensions for axis in self.axes)

    def exists(self, config: "PreTrainedConfig") -> bool:
        return self.exists_if is None or bool(getattr(config, self.exists_if))

    def is_shared(self, config: "PreTrainedConfig") -> bool:
        return self.shared_if is not None and bool(getattr(config, self.shared_if))


@dataclass(frozen=True)
class Norms:
    """The norms of an architecture.

    Args:
        kind (`str`): `"layer"`, which subtracts the mean, or `"rms"`, which does not.
        eps (`str` or `float`): what is added to the mean square, or the attribute of the configuration that states it.
        offset (`float`): what is added to the weight before it scales; 1 where weights are stored less 1.
    """

    kind: Literal["layer", "rms"]
    eps: str | float
    offset: float = 0.0

    def epsilon(self, config: "PreTrainedConfig") -> float:
        """What is added to the mean square."""
        return getattr(config, self.eps) if isinstance(self.eps, str) else self.eps

    @property
    def neutral(self) -> float:
        """The weight with which a norm does not scale."""
        return 1.0 - self.offset


def _no_former_settings(config: "PreTrainedConfig") -> dict[str, Any]:
    return {}


def _no_other_values(config: "PreTrainedConfig", sizes: Sizes) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """The table of an architecture, and how its configurations are read and written.

    Args:
        model_type (`str`): `model_type` of its configurations.
        prefix (`str`): what names of its classes in `transformers` begin with, such as `"Llama"`.
        config_class (`str`): name of its class of configurations in `transformers`.
        model_class (`str`): name of its class without a head.
        causal_class (`str`): name of its class for causal language modeling.
        dimensions (`tuple[Dimension, ...]`): dimensions of its subnets, beside the vocabulary, which all have.
        weights (`tuple[Weight, ...]`): every weight.
        layers (`str`): name of the list of layers in the model.
        norms (`Norms`): its norms.
        heads (`Axis`): the channels of all heads of a layer that attend.
        keys (`Axis`): the channels of all keys of a layer, as many as of the values.
        read_sizes (`Callable`): from a configuration, or that of one layer, the size of each dimension but the layers,
            unsliced ones included.
        write_sizes (`Callable`): from these sizes, the attributes of the configuration of a layer that state them.
        module_sizes (`Callable`): from these sizes and the configuration, attributes of a layer's modules by name, such
            as `"self_attn.head_dim"`, that stock modules read in their forward.
        stock_problem (`Callable`): why no stock class can hold layers that are all alike and have these sizes, or
            `None`. Its arguments are the super-network's configuration and the sizes.
        rotary (`str`, *optional*): name of the module that makes the rotary embedding.
        rotated (`Callable`, *optional*): number of channels of a head that are rotated, from a configuration.
        is_interleaved (`bool`): whether neighbouring channels are a rotary pair; else channels half of the rotated ones
            apart are.
        parallel_if (`str` or `bool`): whether attention and MLP read the same hidden states, of one norm or of two, or
            the attribute of the configuration that says so; otherwise the MLP reads what attention wrote.
        logit_scale (`str`, *optional*): attribute of the configuration that the output matrix's output is multiplied
            with.
        student_values (`Callable`): other attributes of a student's configuration, from the super-network's
            configuration and the student's sizes.
        layer_lists (`tuple[str, ...]`): attributes of the configuration with one value for each layer.
        leftovers (`re.Pattern`, *optional*): tensors in files that transformers skips without a warning.
        capped_if (`str`, *optional*): attribute of the configuration that, if true, caps the logits.
        former_settings (`Callable`): settings of a stock student's configuration under the names that older versions
            of transformers read, among `former_names`.
        former_names (`tuple[str, ...]`): these names.
        oldest_transformers (`Callable`): the oldest version that reads a stock student, from its `config.json`.
    """

    model_type: str
    prefix: str
    config_class: str
    model_class: str
    causal_class: str
    dimensions: tuple[Dimension, ...]
    weights: tuple[Weight, ...]
    layers: str
    norms: Norms
    heads: Axis
    keys: Axis
    read_sizes: Callable[["PreTrainedConfig"], dict[Dimension, int]]
    write_sizes: Callable[[Sizes], dict[str, int]]
    module_sizes: Callable[[Sizes, "PreTrainedConfig"], dict[str, Any]]
    stock_problem: Callable[["PreTrainedConfig", Sizes], str | None]
    oldest_transformers: Callable[[dict[str, Any]], str]
    rotary: str | None = None
    rotated: Callable[["PreTrainedConfig"], int] | None = None
    is_interleaved: bool = False
    parallel_if: str | bool = False
    logit_scale: str | None = None
    student_values: Callable[["PreTrainedConfig", Sizes], dict[str, Any]] = _no_other_values
    layer_lists: tuple[str, ...] = ()
    leftovers: re.Pattern[str] | None = None
    capped_if: str | None = None
    former_settings: Callable[["PreTrainedConfig"], dict[str, Any]] = _no_former_settings
    former_names: tuple[str, ...] = ()

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Attributes of the configuration on which weights depend."""
        names = {name for weight in self.weights for name in (weight.exists_if, weight.shared_if) if name is not None}
        return tuple(sorted(names))

    def is_parallel(self, config: "PreTrainedConfig") -> bool:
        """Whether attention and MLP of a layer read the same hidden states."""
        return bool(getattr(config, self.parallel_if)) if isinstance(self.parallel_if, str) else self.parallel_if

    def logit_factor(self, config: "PreTrainedConfig") -> float | None:
        """What the output of the output matrix is multiplied with to give logits; `None` if they are capped."""
        if self.capped_if is not None and getattr(config, self.capped_if):
            return None
        return 1.0 if self.logit_scale is None else float(getattr(config, self.logit_scale))

    @cached_property
    def per_layer(self) -> tuple[Dimension, ...]:
        """The dimensions of which each layer keeps entries of its own."""
        return tuple(dimension for dimension in self.dimensions if dimension.per_layer)

    @cached_property
    def shared(self) -> tuple[Dimension, ...]:
        """The dimensions of which all layers keep the same entries, the vocabulary last; layers are not among them."""
        return (*(d for d in self.dimensions if not d.per_layer and d is not LAYERS), VOCABULARY)
