"""What makes a model a super-network: its slices run as models of their own."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture import Axis, Dimension, architecture_module, check_model_type, get_architecture, head_dim
from ..subnet import Kept, SubnetConfig
from .elastic import make_elastic, rows


class ElasticModuleList(nn.ModuleList):
    """A list of layers that iterates over the active ones; all stay registered."""

    active: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        layers = list(super().__iter__())
        return iter(layers if self.active is None else [layers[index] for index in self.active])


class SuperNetMixin:
    """Adds `active_subnet` to a causal language model whose architecture has a table.

    The modules of the stock model become index-aware in place; its forward is the stock one.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        architecture = get_architecture(config)
        self._layers = self.get_submodule(architecture.layers)
        self._layers.__class__ = ElasticModuleList
        for weight in architecture.weights:
            for layer in range(config.num_hidden_layers) if weight.in_layer else (None,):
                make_elastic(self.get_submodule(_module_name(weight.name, layer)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "PreTrainedModel":
        """Load a checkpoint as a super-network; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            ArchitectureError: if the checkpoint is of an architecture without a table.
        """
        if pretrained_model_name_or_path is not None and kwargs.get("config") is None:
            hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            found, _ = PreTrainedConfig.get_config_dict(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in hub if name in kwargs}
            )
            check_model_type(found.get("model_type"), pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @contextlib.contextmanager
    def active_subnet(self, subnet: SubnetConfig) -> Iterator["PreTrainedModel"]:
        """Run, train and generate as a subnet inside the block; the full model is back after it.

        The subnet always refers to the full super-network, also inside another `active_subnet` block.

        Raises:
            SubnetError: if the subnet keeps what the super-network does not have.
        """
        subnet.validate(self.config if self._full_config is None else self._full_config)
        before = self._active
        try:
            self._activate(subnet)
            yield self
        finally:
            self._activate(before)

    _active: SubnetConfig | None = None
    _full_config: PreTrainedConfig | None = None

    def _activate(self, subnet: SubnetConfig | None) -> None:
        full = self._full_config or self.config
        self._full_config = None if subnet is None else full
        self._active = subnet
        self._set_config(full if subnet is None else _active_config(full, subnet))
        self._layers.active = None if subnet is None else subnet.layers
        for position, layer in enumerate(self._layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = position
        for weight in get_architecture(full).weights:
            if not weight.name.endswith(".weight"):
                continue  # a bias follows the output axis of its weight
            for layer in range(full.num_hidden_layers) if weight.in_layer else (None,):
                module = self.get_submodule(_module_name(weight.name, layer))
                module.chosen = None if subnet is None else self._chosen(weight.axes, subnet, layer, full)

    def _chosen(self, axes: tuple[Axis, ...], subnet: SubnetConfig, layer: int | None, config: PreTrainedConfig):
        if layer is not None and layer not in subnet.layers:
            return None
        position = None if layer is None else subnet.layers.index(layer)
        return tuple(axis_rows(axis, subnet, position, head_dim(config), self.device) for axis in axes)

    def _set_config(self, config: PreTrainedConfig) -> None:
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config


def axis_rows(axis: Axis, subnet: SubnetConfig, position: int | None, head_dim: int, device: Any = None) -> Any:
    """Rows of a weight's axis that a subnet keeps, as `elastic.take` reads them.

    Args:
        axis (`Axis`): from the table.
        subnet (`SubnetConfig`): what is kept.
        position (`int` or `None`): the weight's layer, counted among the kept ones; `None` outside the layers.
        head_dim (`int`): channels of a head.
        device (*optional*): where an index vector is to lie.
    """
    kept: Kept | None = None
    if axis.dimension is Dimension.CHANNELS:
        kept = subnet.hidden_size
    elif axis.dimension is not Dimension.VOCABULARY:
        kept = getattr(subnet, axis.dimension.value)[position]
    return None if kept is None else rows(kept, axis.block_size(head_dim), device)


def _module_name(weight_name: str, layer: int | None) -> str:
    return weight_name.format(layer=layer).rpartition(".")[0]


def _active_config(full: PreTrainedConfig, subnet: SubnetConfig) -> PreTrainedConfig:
    config = architecture_module(full, "student").student_config(full, subnet)
    config._attn_implementation = full._attn_implementation
    return config
