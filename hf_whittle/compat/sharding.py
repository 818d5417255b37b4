"""Names by which weights are known that are offloaded, or spread over processes: accelerate, FSDP and DeepSpeed."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def execution_device(module: "nn.Module") -> Any:
    """Return the device that runs a module, `"cpu"` unless accelerate offloaded it: `_hf_hook`, not public."""
    return getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu")


def shard_with_fsdp2(accelerator: Any, model: "nn.Module") -> "nn.Module":
    """Shard a model in place, as the accelerator shards those it prepares.

    `fsdp2_prepare_model` is undocumented. Under FSDP2, the public `Accelerator.prepare` demands an optimizer with a
    model, and a teacher has none. The plugin keeps the names of the first model's layers, which another may not have.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    policy, names = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.transformer_cls_names_to_wrap = None
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = policy, names


SHARD_ATTRIBUTES = ("full_tensor", "_is_flat_param", "ds_id")
"""Attributes that only shards have: under FSDP2 (public), FSDP1 and DeepSpeed (private; neither has a public test)."""
FSDP1_MARK = "_fsdp_use_orig_params"
"""Attribute of modules whose parameters FSDP1 manages; with `use_orig_params`, the parameters bear no mark."""


def is_partitioned(parameter: "torch.Tensor") -> bool:
    """Return whether DeepSpeed ZeRO-3 spread a parameter over processes: `ds_id`; it has no public test for that."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: "torch.Tensor") -> tuple[int, ...]:
    """Return the shape of a parameter, of DeepSpeed's shards that of the whole: `ds_shape`; their own is `(0,)`."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def forget_partitioning() -> None:
    """Load models whole from now on, although arguments of a training with DeepSpeed ZeRO-3 may still exist.

    `transformers.integrations.deepspeed` is not documented.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextlib.contextmanager
def not_partitioned() -> Iterator[None]:
    """Load models whole inside the block, although arguments of a training with DeepSpeed ZeRO-3 exist.

    `_hf_deepspeed_config_weak_ref`; transformers has no public way to set it again.
    """
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    forget_partitioning()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept
