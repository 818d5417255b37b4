"""Slices of a model's weights that a subnet keeps, and the student that holds them."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..compat import no_init_weights, set_attention_kernel
from ..errors import CheckpointError
from ..subnet import Shape, SubnetConfig
from .architecture import Weight, architecture_module, get_architecture, head_dim
from .elastic import take
from .padding import padded_shape
from .single_layer import single_precision_attention
from .supernet import axis_rows
from .weights import all_weights, check_finite, embedding, in_words, weight_shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.get_logger(__name__)


def slice_weights(
    weights: Mapping[str, torch.Tensor],
    config: "PreTrainedConfig",
    subnet: SubnetConfig,
    *,
    padded: bool = False,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> dict[str, torch.Tensor]:
    """Copy the weights that a subnet keeps into the state dict of its student, with layers renumbered.

    Args:
        weights (`Mapping[str, torch.Tensor]`): the model's, by their names in the table or in old files.
        config (`PreTrainedConfig`): the model's.
        subnet (`SubnetConfig`): the subnet.
        padded (`bool`, *optional*, defaults to `False`): whether to pad heads and neurons to `padded_shape`.
        dtype (`torch.dtype`, *optional*): precision of the copies; by default each keeps its own.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        CheckpointError: if a weight is missing, has another shape than the configuration says, or contains NaN or Inf.
    """
    full = Shape.from_config(config)
    target = padded_shape(config, subnet) if padded else subnet.shape
    sliced = {}
    for weight, layer, position in tqdm(kept_weights(config, subnet), "extract", unit="tensor", disable=not progress):
        name = stored_name(weights, weight, layer)
        tensor = weights[name].detach()
        _check_tensor(name, tensor, weight_shape(weight, config, full, layer))
        for dim, axis in enumerate(weight.axes):
            tensor = take(tensor, dim, axis_rows(axis, subnet, position, head_dim(config), tensor.device))
        shape = weight_shape(weight, config, target, position)
        sliced[weight.name.format(layer=position)] = fill(tensor, shape, dtype or tensor.dtype)
    return sliced


def _check_tensor(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise CheckpointError(
            f"{name} has the shape {tuple(tensor.shape)}, the configuration says {expected}; the checkpoint "
            "contradicts its configuration"
        )
    check_finite(name, tensor)


def student_model(
    config: "PreTrainedConfig", subnet: SubnetConfig, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """Build an in-memory student; tensors already in `dtype` are shared.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's.
        state_dict (`Mapping[str, torch.Tensor]`): its weights.
        dtype (`torch.dtype`): precision of its weights.
    """
    architecture = architecture_module(config, "student")
    own = architecture.student_config(config, subnet)
    set_attention_kernel(own, single_precision_attention(config))
    with torch.device("cpu"), no_init_weights():
        student = architecture.student_class(own)(own)
    student.load_state_dict({name: tensor.to(dtype) for name, tensor in state_dict.items()}, strict=False, assign=True)
    student.tie_weights()
    student.subnet = subnet
    return student.to(next(iter(state_dict.values())).device).eval()


def fill(tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A copy of a tensor, padded with zeros at the ends of its axes up to `shape`."""
    make = torch.empty if tensor.shape == shape else torch.zeros
    copy = make(shape, dtype=dtype, device=tensor.device)
    copy[tuple(slice(size) for size in tensor.shape)] = tensor
    return copy


class Renamed(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by their names in the table.

    Raises:
        CheckpointError: if a weight is missing.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], config: "PreTrainedConfig"):
        everything = kept_weights(config, SubnetConfig.full(config))
        self._weights = weights
        self.stored = {
            weight.name.format(layer=layer): stored_name(weights, weight, layer, config)
            for weight, layer, _ in everything
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def as_stored(config: "PreTrainedConfig", checkpoint: Mapping[str, torch.Tensor]) -> "PreTrainedConfig":
    """The configuration that a checkpoint has once transformers has loaded it.

    Matrices that the configuration ties and that differ in the checkpoint are untied, with a warning. Tensors without a
    place in the configuration are left out, with a warning.
    """
    weights = get_architecture(config).weights
    for weight in weights:
        own, shared = (stored_as(checkpoint, each, 0) for each in (weight, embedding(config)))
        if weight.is_shared(config) and own and shared and not torch.equal(checkpoint[own], checkpoint[shared]):
            logger.warning(
                f"the configuration says {weight.shared_if}, but {own} of the checkpoint is another matrix than "
                f"{shared}: they are not tied, as in transformers"
            )
            config = copy.deepcopy(config)
            setattr(config, str(weight.shared_if), False)
    names = {name.format(layer=layer) for weight, layer in all_weights(config) for name in _names(weight)}
    leftovers = architecture_module(config, "student").LEFTOVERS
    others = [name for name in checkpoint if name not in names and not leftovers.search(name)]
    if others:
        logger.warning(f"the configuration has no place for {in_words(others)} of the checkpoint: they are left out")
    return config


def kept_weights(config: "PreTrainedConfig", subnet: SubnetConfig) -> list[tuple[Weight, int, int]]:
    """The weights of a student, each with its layer in the model and in the student; 0 and 0 outside of layers."""
    kept: list[tuple[Weight, int, int]] = []
    for weight in get_architecture(config).weights:
        if weight.exists(config) and not weight.is_shared(config):
            layers = enumerate(subnet.layers) if weight.in_layer else [(0, 0)]
            kept.extend((weight, layer, position) for position, layer in layers)
    return kept


def stored_as(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str | None:
    """The name of a weight in a checkpoint, or `None`; where both names are there, the one that transformers takes."""
    return next((name for each in _names(weight) if (name := each.format(layer=layer)) in weights), None)


def _names(weight: Weight) -> list[str]:
    return [name for name in (weight.file_name, weight.name) if name is not None]


def stored_name(
    weights: Mapping[str, torch.Tensor], weight: Weight, layer: int, config: "PreTrainedConfig | None" = None
) -> str:
    """The name of a weight in a checkpoint, or else that of a weight tied to it.

    Raises:
        CheckpointError: if the checkpoint has neither.
    """
    name = stored_as(weights, weight, layer)
    if name is None and config is not None and weight is embedding(config):
        sharing = (each for each in get_architecture(config).weights if each.is_shared(config))
        name = next((found for each in sharing if (found := stored_as(weights, each, 0))), None)
    if name is None:
        wanted = " or ".join(each.format(layer=layer) for each in reversed(_names(weight)))
        raise CheckpointError(
            f"the checkpoint lacks the tensor {wanted}; download it again. If its model has no head for causal "
            "language modeling, load it with AutoModelForCausalLM and save that"
        )
    return name
