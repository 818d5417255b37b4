"""Models of given configurations for rehearsals, with an attention that keeps what fused kernels keep."""

import copy
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig

from ..architectures.registry import is_whittle
from ..compat.transformers import attention_kernel, from_config, no_init_weights, set_attention_kernel
from ..models.student import student_class, student_config
from ..subnet import SubnetConfig

_FUSED = "hf_whittle_fused_attention"


class _FusedAttention(torch.autograd.Function):
    """Attention as fused kernels hold it: inputs, outputs and a number for each query; it computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_FUSED, _attend)


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A model of a configuration, whose attention computes nothing unless it is eager."""
    config = copy.deepcopy(config)
    if attention_kernel(config) != "eager":
        set_attention_kernel(config, _FUSED)
    with no_init_weights():
        if is_whittle(config.model_type):
            return from_config(student_class(config), config, dtype=dtype)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def shallow(config: PreTrainedConfig, subnet: SubnetConfig) -> Any:
    """A random student of a subnet's first layer alone.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the subnet.
    """
    one = student_config(config, subnet.with_layers(subnet.layers[:1]))
    return student_class(one)(one)
