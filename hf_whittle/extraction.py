"""Cut a student out of a super-network: the weights a subnet keeps, in a model of their own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch

from .architecture import architecture_module, get_architecture, head_dim
from .errors import SubnetError
from .models.elastic import take
from .models.supernet import axis_rows
from .subnet import SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def extract_subnet(
    model: "PreTrainedModel", subnet: SubnetConfig, *, format: Literal["auto", "stock", "whittle"] = "auto"
) -> "PreTrainedModel":
    """Cut a student out of a super-network, or out of another student.

    Args:
        model (`PreTrainedModel`): a super-network, a stock GPT-NeoX or a student, for causal language modeling.
        subnet (`SubnetConfig`): what to keep of it.
        format (`str`, *optional*, defaults to `"auto"`): `"stock"` for a `GPTNeoXForCausalLM`, `"whittle"` for a
            `WhittleGPTNeoXForCausalLM`, `"auto"` for stock where that can hold the student.

    Returns:
        `PreTrainedModel`: the student, on the model's device and in its dtype, sharing no memory with it, in
        evaluation mode.

    Raises:
        SubnetError: if the subnet does not fit the model, or the format cannot hold it.
        ArchitectureError: if the model is of an architecture without a table.
    """
    if format not in ("auto", "stock", "whittle"):
        raise SubnetError(f"format must be 'auto', 'stock' or 'whittle', got {format!r}")
    source = getattr(model, "full_config", model.config)
    subnet.validate(source)
    student = architecture_module(source, "student")
    config = student.student_config(source, subnet, format)
    weights = slice_weights(model.state_dict(), source, subnet)
    extracted = student.student_class(config).from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=model.dtype,
        attn_implementation=source._attn_implementation,
    )
    if model.can_generate() and model.generation_config is not None:
        extracted.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    return extracted.to(model.device)


def slice_weights(
    weights: Mapping[str, torch.Tensor], config: "PreTrainedConfig", subnet: SubnetConfig
) -> dict[str, torch.Tensor]:
    """The student's state dict: copies of what the subnet keeps, layers numbered anew."""
    sliced = {}
    for weight in get_architecture(config).weights:
        if not weight.exists(config) or weight.is_shared(config):
            continue
        for position, layer in enumerate(subnet.layers) if weight.in_layer else [(None, None)]:
            tensor = weights[weight.name.format(layer=layer)].detach()
            for dim, axis in enumerate(weight.axes):
                tensor = take(tensor, dim, axis_rows(axis, subnet, position, head_dim(config), tensor.device))
            sliced[weight.name.format(layer=position)] = tensor.clone(memory_format=torch.contiguous_format)
    return sliced
