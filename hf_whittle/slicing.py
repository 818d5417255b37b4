"""The weights that a subnet keeps of a model's, and the model that holds them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers.initialization import no_init_weights

from .architecture import Dimension, Weight, architecture_module, get_architecture, head_dim
from .cost import padded_shape
from .errors import CheckpointError
from .models.elastic import take
from .models.single_layer import single_precision_attention
from .models.supernet import axis_rows
from .subnet import Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
    own._attn_implementation = single_precision_attention(config)
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
    """Weights under the names of the table, whatever a checkpoint calls them."""

    def __init__(self, weights: Mapping[str, torch.Tensor], config: "PreTrainedConfig"):
        everything = kept_weights(config, SubnetConfig.full(config))
        self._weights = weights
        self._names = {
            weight.name.format(layer=layer): stored_name(weights, weight, layer) for weight, layer, _ in everything
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def kept_weights(config: "PreTrainedConfig", subnet: SubnetConfig) -> list[tuple[Weight, int, int]]:
    """The weights a student has: each with its layer in the model and its layer in the student, 0 outside layers."""
    kept: list[tuple[Weight, int, int]] = []
    for weight in get_architecture(config).weights:
        if weight.exists(config) and not weight.is_shared(config):
            layers = enumerate(subnet.layers) if weight.in_layer else [(0, 0)]
            kept.extend((weight, layer, position) for position, layer in layers)
    return kept


def stored_as(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str | None:
    """The name of a weight in a checkpoint, if it is there."""
    names = [name.format(layer=layer) for name in (weight.name, weight.file_name) if name is not None]
    return next((name for name in names if name in weights), None)


def stored_name(weights: Mapping[str, torch.Tensor], weight: Weight, layer: int) -> str:
    name = stored_as(weights, weight, layer)
    if name is None:
        wanted = " or ".join(n.format(layer=layer) for n in (weight.name, weight.file_name) if n is not None)
        raise CheckpointError(
            f"the checkpoint lacks the tensor {wanted}; download it again. If it is of a model without a head for "
            "causal language modeling, load it with AutoModelForCausalLM and save that"
        )
    return name


def weight_shape(weight: Weight, config: "PreTrainedConfig", shape: Shape, layer: int) -> tuple[int, ...]:
    """The shape of a weight in a model of these sizes."""
    sizes = {
        Dimension.VOCABULARY: config.vocab_size,
        Dimension.CHANNELS: shape.hidden_size,
        Dimension.HEADS: shape.num_attention_heads[layer],
        Dimension.NEURONS: shape.intermediate_size[layer],
    }
    return tuple(sizes[axis.dimension] * axis.block_size(head_dim(config)) for axis in weight.axes)
