"""Slices of a model's weights that a subnet keeps, and the student that holds them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..compat.transformers import no_init_weights, set_attention_kernel
from ..errors import CheckpointError
from ..progress import progress_bar
from ..subnet import Shape, SubnetConfig
from .checkpoint_names import stored_name
from .elastic import take
from .padding import padded_shape
from .rows import KeptRows
from .single_layer import single_precision_attention
from .student import student_class, student_config
from .weights import Factors, check_finite, kept_weights, weight_factors, weight_shape

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
    kept = subnet.shape.filled(full)
    target = padded_shape(config, subnet) if padded else kept
    rows = KeptRows(config, subnet)
    sliced = {}
    for weight, layer, position in progress_bar(
        kept_weights(config, subnet), "extract", unit="tensor", disable=not progress
    ):
        name = stored_name(weights, weight, layer)
        tensor = weights[name].detach()
        _check_tensor(name, tensor, weight_shape(weight, config, full, layer))
        for dim, axis in enumerate(weight.axes):
            tensor = take(tensor, dim, rows(axis, position, tensor.device))
        held, shape = (weight_factors(weight, config, sizes, position) for sizes in (kept, target))
        sliced[weight.name.format(layer=position)] = fill(tensor, held, shape, dtype or tensor.dtype)
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
    own = student_config(config, subnet)
    set_attention_kernel(own, single_precision_attention(config))
    with torch.device("cpu"), no_init_weights():
        student = student_class(own)(own)
    student.load_state_dict({name: tensor.to(dtype) for name, tensor in state_dict.items()}, strict=False, assign=True)
    student.tie_weights()
    student.subnet = subnet
    return student.to(next(iter(state_dict.values())).device).eval()


def fill(tensor: torch.Tensor, held: Factors, shape: Factors, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a weight, padded with zeros.

    Args:
        tensor (`torch.Tensor`): the weight.
        held (`Factors`): sizes of the factors of its axes.
        shape (`Factors`): their sizes in the copy; each factor is padded at its end, as a head in the middle of an axis
            has to stay with its queries, keys or values.
        dtype (`torch.dtype`): precision of the copy.
    """
    sizes = tuple(math.prod(factors) for factors in shape)
    if held == shape:
        return torch.empty(sizes, dtype=dtype, device=tensor.device).copy_(tensor)
    copy = torch.zeros(sum(shape, ()), dtype=dtype, device=tensor.device)
    copy[tuple(slice(size) for size in sum(held, ()))] = tensor.reshape(sum(held, ()))
    return copy.reshape(sizes)
