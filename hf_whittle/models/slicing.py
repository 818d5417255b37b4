"""The weights that a subnet keeps of a model's, and the model that holds them."""

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
    """The student's state dict: copies of what the subnet keeps, layers numbered anew.

    Args:
        weights (`Mapping[str, torch.Tensor]`): of the model, under the names of the table or those in old files.
        config (`PreTrainedConfig`): the model's.
        subnet (`SubnetConfig`): what to keep.
        padded (`bool`, *optional*, defaults to `False`): whether to pad heads and neurons to `padded_shape`.
        dtype (`torch.dtype`, *optional*): of the copies; that of each weight by default.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        CheckpointError: if a weight is missing, of another shape than the configuration says, or not finite.
    """
    full = Shape.from_config(config)
    target = padded_shape(config, subnet) if padded else subnet.shape
    sliced = {}
    for weight, layer, position in tqdm(kept_weights(config, subnet), "extract", unit="tensor", disable=not progress):
        name = stored_name(weights, weight, layer)
        tensor = weights[name].detach()
        expected = weight_shape(weight, config, full, layer)
        if tensor.shape != expected:
            raise CheckpointError(
                f"{name} has the shape {tuple(tensor.shape)}, the configuration says {expected}; the checkpoint "
                "contradicts its configuration"
            )
        check_finite(name, tensor)
        for dim, axis in enumerate(weight.axes):
            tensor = take(tensor, dim, axis_rows(axis, subnet, position, head_dim(config), tensor.device))
        shape = weight_shape(weight, config, target, position)
        sliced[weight.name.format(layer=position)] = fill(tensor, shape, dtype or tensor.dtype)
    return sliced


def student_model(
    config: "PreTrainedConfig", subnet: SubnetConfig, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """A student for use within the process: its weights are those given where they are of the type already.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): what the student keeps.
        state_dict (`Mapping[str, torch.Tensor]`): its weights.
        dtype (`torch.dtype`): of its weights.
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
    """A copy of a tensor, with zeros around it where the shape is larger."""
    make = torch.empty if tensor.shape == shape else torch.zeros
    copy = make(shape, dtype=dtype, device=tensor.device)
    copy[tuple(slice(size) for size in tensor.shape)] = tensor
    return copy


class Renamed(Mapping[str, torch.Tensor]):
    """Weights under the names of the table, whatever a checkpoint calls them.

    Raises:
        CheckpointError: if some are missing.
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
    """The configuration of what transformers makes of a checkpoint, where the two contradict each other.

    Where the configuration ties two matrices and the checkpoint holds different ones, they are not tied. Tensors that
    the configuration has no place for are left out. Both give a warning.
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
    stale = architecture_module(config, "student").LEFTOVERS
    others = [name for name in checkpoint if name not in names and not stale.search(name)]
    if others:
        logger.warning(f"the configuration has no place for {in_words(others)} of the checkpoint: they are left out")
    return config


def kept_weights(config: "PreTrainedConfig", subnet: SubnetConfig) -> list[tuple[Weight, int, int]]:
    """The weights a student has: each with its layer in the model and its layer in the student, 0 outside layers."""
    kept: list[tuple[Weight, int, int]] = []
    for weight in get_architecture(config).weights:
        if weight.exists(config) and not weight.is_shared(config):
            layers = enumerate(subnet.layers) if weight.in_layer else [(0, 0)]
            kept.extend((weight, layer, position) for position, layer in layers)
    return kept


def stored_as(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str | None:
    """The name of a weight in a checkpoint, if it is there; of two, that which transformers takes."""
    return next((name for each in _names(weight) if (name := each.format(layer=layer)) in weights), None)


def _names(weight: Weight) -> list[str]:
    return [name for name in (weight.file_name, weight.name) if name is not None]


def stored_name(
    weights: Mapping[str, torch.Tensor], weight: Weight, layer: int, config: "PreTrainedConfig | None" = None
) -> str:
    """The name of a weight in a checkpoint; that of a weight which shares its tensor, where only that is there."""
    name = stored_as(weights, weight, layer)
    if name is None and config is not None and weight is embedding(config):
        sharing = (each for each in get_architecture(config).weights if each.is_shared(config))
        name = next((found for each in sharing if (found := stored_as(weights, each, 0))), None)
    if name is None:
        wanted = " or ".join(each.format(layer=layer) for each in reversed(_names(weight)))
        raise CheckpointError(
            f"the checkpoint lacks the tensor {wanted}; download it again. If it is of a model without a head for "
            "causal language modeling, load it with AutoModelForCausalLM and save that"
        )
    return name
