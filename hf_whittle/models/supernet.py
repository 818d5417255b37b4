"""What makes a model a super-network: its slices run as models of their own."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..architecture import (
    Axis,
    Dimension,
    Weight,
    architecture_module,
    check_model_type,
    get_architecture,
    head_dim,
)
from ..files import commit_of
from ..portable import make_portable
from ..subnet import Kept, SubnetConfig
from .elastic import make_elastic, rows


class ElasticModuleList(nn.ModuleList):
    """A list of layers that iterates over the active ones; all stay registered."""

    active: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        layers = list(super().__iter__())
        return iter(layers if self.active is None else [layers[index] for index in self.active])


class SuperNetModel(PreTrainedModel):
    """Base class that adds `active_subnet` to a causal language model whose architecture has a table.

    The modules of the stock model become index-aware in place; its forward is the stock one.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._layers.__class__ = ElasticModuleList
        for _, _, module in self._sliced_modules():
            make_elastic(module)
        make_portable(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as a super-network; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            ArchitectureError: if the checkpoint is of an architecture without a table.
        """
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        hub = {name: kwargs[name] for name in names if name in kwargs}
        if pretrained_model_name_or_path is not None and kwargs.get("config") is None:
            found, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
            check_model_type(found.get("model_type"), pretrained_model_name_or_path)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.config._commit_hash = commit_of(pretrained_model_name_or_path, **hub)
        return loaded

    @contextlib.contextmanager
    def active_subnet(self, subnet: SubnetConfig) -> Iterator["SuperNetModel"]:
        """Run, train and generate as a subnet inside the block; the full model is back after it.

        The subnet always refers to the full super-network, also inside another `active_subnet` block.

        Raises:
            SubnetError: if the subnet keeps what the super-network does not have.
        """
        subnet.validate(self.full_config)
        before = self._active
        try:
            self._activate(subnet)
            yield self
        finally:
            self._activate(before)

    @property
    def full_config(self) -> PreTrainedConfig:
        """The super-network's own configuration, also while `config` is that of an active subnet."""
        return self._full_config or self.config

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save the whole super-network as a stock model, also while a subnet is active.

        Args:
            save_directory (`str` or `Path`): the folder.
            is_main_process (`bool`, *optional*, defaults to `True`): whether this process writes the configuration.
            args: as in `PreTrainedModel.save_pretrained`.
            kwargs: likewise.
        """
        before = self._active
        try:
            self._activate(None)
            make_portable(self)
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        finally:
            self._activate(before)
        path = Path(save_directory) / CONFIG_NAME
        if is_main_process and path.is_file():
            stock = architecture_module(self.config, "student").student_class(self.config)
            self.config.architectures = [stock.__name__]
            self.config.to_json_file(path)

    def weights_in_use(self) -> Iterator[torch.Tensor]:
        """The weights of the active subnet's matrices and norms, without biases; all of them if none is active."""
        for _, layer, module in self._sliced_modules():
            if layer is None or self._layers.active is None or layer in self._layers.active:
                yield module.in_use("weight")

    _active: SubnetConfig | None = None
    _full_config: PreTrainedConfig | None = None

    @property
    def _layers(self) -> Any:
        return self.get_submodule(get_architecture(self.config).layers)

    def _sliced_modules(self) -> Iterator[tuple[Weight, int | None, Any]]:
        """Every module with a weight of the table: the weight, its layer and the module."""
        for weight in get_architecture(self.config).weights:
            if weight.name.endswith(".weight"):  # a bias follows the output axis of its weight
                for layer in range(len(self._layers)) if weight.in_layer else (None,):
                    yield weight, layer, self.get_submodule(weight.name.format(layer=layer).removesuffix(".weight"))

    def _activate(self, subnet: SubnetConfig | None) -> None:
        full, width = self.full_config, head_dim(self.full_config)
        kept_layers = () if subnet is None else subnet.layers
        positions = {layer: position for position, layer in enumerate(kept_layers)}
        known: dict[tuple[Axis, int | None], Any] = {}

        def chosen_rows(axis: Axis, position: int | None) -> Any:
            assert subnet is not None
            key = axis, None if axis.dimension is Dimension.CHANNELS else position
            if key not in known:
                known[key] = axis_rows(axis, subnet, position, width, self.device)
            return known[key]

        for weight, layer, module in self._sliced_modules():
            module.chosen = None
            if subnet is not None and (layer is None or layer in positions):
                position = None if layer is None else positions[layer]
                module.chosen = tuple(chosen_rows(axis, position) for axis in weight.axes)
        self._active, self._full_config = subnet, None if subnet is None else full
        self._set_config(full if subnet is None else _active_config(full, subnet))
        self._layers.active = None if subnet is None else kept_layers
        for position, active_layer in enumerate(self._layers):
            for module in active_layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = position

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


def _active_config(full: PreTrainedConfig, subnet: SubnetConfig) -> PreTrainedConfig:
    config = architecture_module(full, "student").student_config(full, subnet)
    config._attn_implementation = full._attn_implementation
    return config
