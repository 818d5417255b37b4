"""Super-networks: models whose slices run as models of their own."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..architectures.dimensions import VOCABULARY
from ..architectures.registry import check_model_type, get_architecture, is_whittle
from ..architectures.table import Weight
from ..compat.transformers import attention_kernel, set_attention_kernel, set_commit_hash, set_layer_index
from ..errors import ArchitectureError, SubnetError, WeightsError
from ..files.sources import commit_of
from ..subnet import Shape, SubnetConfig
from .elastic import make_elastic, make_rotary_elastic
from .placement import running_device
from .portable import make_portable
from .rows import KeptRows
from .student import student_class, student_config
from .weights import all_weights, check_no_subnet, check_plain, load_whole


class ElasticModuleList(nn.ModuleList):
    """A list of layers whose length, items, slices and iterator are those of the active layers.

    All layers stay registered under their names, by which `state_dict` and `named_modules` see all of them.
    """

    active: tuple[int, ...] | None = None

    def _in_use(self) -> list[nn.Module]:
        layers = list(self._modules.values())
        return layers if self.active is None else [layers[index] for index in self.active]

    def __len__(self) -> int:
        return len(self._in_use())

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._in_use())

    def __getitem__(self, index: int | slice) -> Any:
        layers = self._in_use()
        return nn.ModuleList(layers[index]) if isinstance(index, slice) else layers[index]

    def _check_whole(self) -> None:
        if self.active is not None:
            raise SubnetError("a subnet is active: leave the active_subnet block before you change the list of layers")

    def __setitem__(self, index: int, module: nn.Module) -> None:
        self._check_whole()
        super().__setitem__(index, module)

    def __delitem__(self, index: int | slice) -> None:  # also called by `pop`
        self._check_whole()
        super().__delitem__(index)

    def insert(self, index: int, module: nn.Module) -> None:
        self._check_whole()
        super().insert(index, module)

    def add_module(self, name: str, module: nn.Module | None) -> None:  # also called by `append`, `extend` and `+=`
        self._check_whole()
        super().add_module(name, module)


class SuperNetModel(PreTrainedModel):
    """Base class that adds `active_subnet` to a causal language model whose architecture has a table.

    Its sliced modules become elastic in place; its forward is the stock one.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        self._check_model_type(config.model_type, f"a {type(config).__name__}")
        Shape.from_config(config)  # refuses settings that the table does not cover
        super().__init__(config, *args, **kwargs)
        self._layers.__class__ = ElasticModuleList
        self._layers.active = None
        self._make_elastic()
        make_portable(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as a super-network; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            ArchitectureError: if the checkpoint is of an architecture without a table.
            CheckpointError: if a weight is missing, has another shape than the configuration says, or contains NaN or
                Inf.
            WeightsError: if the checkpoint is quantized, or a `quantization_config` is given.
        """
        quantization = kwargs.get("quantization_config")
        source = kwargs.get("config") or pretrained_model_name_or_path
        if isinstance(source, str | os.PathLike):
            found = found_config(source, kwargs)
            cls._check_model_type(found.get("model_type"), source, found.get("text_config"))
            quantization = quantization or found.get("quantization_config")
        if quantization is not None:
            raise WeightsError(
                "no slice of a quantized super-network can be run; load it without quantization_config, from a "
                "checkpoint that is not quantized"
            )
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = load_whole(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None:
            set_commit_hash(model.config, commit_of(pretrained_model_name_or_path, **_hub_arguments(kwargs)))
        return (model, info) if wants_info else model

    @classmethod
    def _check_model_type(cls, model_type: str | None, source: object, text: Any = None) -> None:
        """Raise `ArchitectureError` unless a checkpoint is of the architecture of this class."""
        check_model_type(model_type, source, text)
        own = getattr(cls.config_class, "model_type", None)
        if is_whittle(model_type):
            raise ArchitectureError(
                f"{source} is a student that no stock model can hold ({model_type}), and no super-network is made of "
                "one; use the model that it was extracted from"
            )
        if model_type != own:
            raise ArchitectureError(
                f"{source} is a {model_type}, and {cls.__name__} loads {own}; use AutoSuperNetForCausalLM, which picks "
                "the class"
            )

    @contextlib.contextmanager
    def active_subnet(self, subnet: SubnetConfig) -> Iterator["SuperNetModel"]:
        """Run, train and generate as a subnet inside the block; after it, the full model is active again.

        The subnet always refers to the full super-network, also inside another `active_subnet` block.

        Raises:
            SubnetError: if the subnet does not fit the super-network.
            WeightsError: if a weight is quantized or adapted.
        """
        subnet.validate(self.full_config)
        sliced = self._make_elastic()
        for weight, layer, module in sliced:
            check_plain(weight.name.format(layer=layer), module.weight, module)
        before = self._active
        try:
            self._activate(subnet, sliced)
            yield self
        finally:
            self._activate(before, sliced)

    @property
    def full_config(self) -> PreTrainedConfig:
        """The super-network's configuration, also while `config` is that of an active subnet."""
        return self._full_config or self.config

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save the whole super-network as a stock model, also while a subnet is active.

        Args:
            save_directory (`str` or `Path`): the folder.
            is_main_process (`bool`, *optional*, defaults to `True`): whether this process writes the configuration.
            args: other arguments of `PreTrainedModel.save_pretrained`.
            kwargs: other arguments of `PreTrainedModel.save_pretrained`.
        """
        with self._whole():
            make_portable(self)
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            self._name_stock_class(save_directory)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Name the stock class before `save_pretrained(push_to_hub=True)` uploads the files."""
        self._name_stock_class(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _name_stock_class(self, folder: str | os.PathLike[Any]) -> None:
        """Write the configuration of a stock model to a folder that has a configuration."""
        path, config = Path(folder) / CONFIG_NAME, self.full_config
        if path.is_file():
            config.architectures = [student_class(config).__name__]
            config.to_json_file(path)

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Set the attention kernel of the whole super-network, also while a subnet is active."""
        with self._whole():
            super().set_attn_implementation(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the size of the vocabulary; arguments as in `PreTrainedModel`.

        Raises:
            SubnetError: if a subnet is active.
        """
        check_no_subnet(self)
        return super().resize_token_embeddings(*args, **kwargs)

    def set_input_embeddings(self, value: nn.Module) -> None:
        check_no_subnet(self)
        super().set_input_embeddings(value)
        self._make_elastic()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        check_no_subnet(self)
        super().set_output_embeddings(new_embeddings)
        self._make_elastic()

    def weights_in_use(self) -> Iterator[torch.Tensor]:
        """The weights of the active subnet's matrices and norms, or else of the model's; biases are left out."""
        for _, layer, module in self._sliced_modules():
            if layer is None or self._layers.active is None or layer in self._layers.active:
                yield module.in_use("weight")

    _active: SubnetConfig | None = None
    _full_config: PreTrainedConfig | None = None

    @property
    def _layers(self) -> Any:
        return self.get_submodule(get_architecture(self.config).layers)

    @property
    def _rotary(self) -> Any:
        name = get_architecture(self.config).rotary
        return None if name is None else self.get_submodule(name)

    def _sliced_modules(self) -> Iterator[tuple[Weight, int | None, Any]]:
        """Each weight of the table that is not a bias, its layer and its module."""
        for weight, layer in all_weights(self.full_config):
            if weight.name.endswith(".weight"):  # its module slices the bias with it
                yield weight, layer, self.get_submodule(weight.name.format(layer=layer).removesuffix(".weight"))

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Deactivate the active subnet inside the block."""
        before = self._active
        try:
            self._activate(None)
            yield
        finally:
            self._activate(before)

    def _make_elastic(self) -> list[tuple[Weight, int | None, Any]]:
        """Make the sliced modules elastic, also those that replaced others since."""
        sliced = list(self._sliced_modules())
        for weight, layer, module in sliced:
            name = weight.module.format(layer=layer)
            make_elastic(module, name, is_norm=weight.is_norm, is_transposed=weight.is_transposed)
        if self._rotary is not None:
            make_rotary_elastic(self._rotary)
        return sliced

    def _activate(
        self, subnet: SubnetConfig | None, sliced: Iterable[tuple[Weight, int | None, Any]] | None = None
    ) -> None:
        full = self.full_config
        rows = None if subnet is None else KeptRows(full, subnet)
        kept_layers = () if subnet is None else subnet.layers
        positions = {layer: position for position, layer in enumerate(kept_layers)}
        for weight, layer, module in self._sliced_modules() if sliced is None else sliced:
            module.chosen = None
            if rows is not None and (layer is None or layer in positions):
                position = None if layer is None else positions[layer]
                device = running_device(module)
                module.chosen = tuple(rows(axis, position, device) for axis in weight.axes)
        if self._rotary is not None:
            self._rotary.chosen = None if rows is None else rows.rotated()
        self._active, self._full_config = subnet, None if subnet is None else full
        self._set_config(full if subnet is None else _active_config(full, subnet))
        self._layers.active = None if subnet is None else kept_layers
        self._set_sizes(Shape.from_config(full) if subnet is None else subnet.shape.filled(Shape.from_config(full)))

    def _set_sizes(self, shape: Shape) -> None:
        """Set the sizes, and the place in caches, that stock modules of the active layers read in their forward."""
        known: dict[tuple[int, ...], dict[str, Any]] = {}
        architecture = get_architecture(self.full_config)
        for position, layer in enumerate(self._layers):
            set_layer_index(layer, position)
            sizes = shape.of_layer(position)
            key = tuple(sizes.values())
            if key not in known:
                known[key] = architecture.module_sizes(sizes, self.full_config)
            for name, value in known[key].items():
                module, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(module), attribute, value)

    def _set_config(self, config: PreTrainedConfig) -> None:
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config
                if hasattr(module, VOCABULARY.name):  # some losses read it
                    setattr(module, VOCABULARY.name, config.vocab_size)


def found_config(source: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Content of `config.json` of a checkpoint, found by the arguments of `from_pretrained` that say where it is."""
    found, _ = PreTrainedConfig.get_config_dict(source, **_hub_arguments(arguments))
    return found


def _hub_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: arguments[name] for name in names if name in arguments}


def _active_config(full: PreTrainedConfig, subnet: SubnetConfig) -> PreTrainedConfig:
    config = student_config(full, subnet)
    set_attention_kernel(config, attention_kernel(full))
    return config
