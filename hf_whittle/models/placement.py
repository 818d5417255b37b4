"""Weights that are sharded over processes or offloaded, and the device of a model."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..compat.sharding import FSDP1_MARK, SHARD_ATTRIBUTES, execution_device
from ..errors import WeightsError

OFFLOADED = "is not in memory but offloaded; load the model without a device_map that offloads layers"


def is_sharded(model: Any) -> bool:
    """Whether parameters of a model are spread over processes, which must then run it together.

    Where FSDP1 keeps the original parameters (`use_orig_params`), only the modules are marked.
    """
    marked = (hasattr(module, FSDP1_MARK) for module in model.modules())
    return any(map(is_shard, model.parameters())) or any(marked)


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a parameter is sharded by FSDP or DeepSpeed ZeRO-3, so that this process holds a part of it, or none."""
    return any(hasattr(tensor, name) for name in SHARD_ATTRIBUTES)


def check_can_be_gathered(model: Any) -> None:
    """Raise `WeightsError` for shards that `whole_tensor` cannot gather: those of FSDP1 and DeepSpeed ZeRO-3."""
    shards = [parameter for parameter in model.parameters() if is_shard(parameter)]
    if is_sharded(model) and not (shards and all(hasattr(shard, "full_tensor") for shard in shards)):
        raise WeightsError(
            f"the weights of this {type(model).__name__} are sharded by FSDP1 or DeepSpeed ZeRO-3 and no process has "
            "them whole; give a model that is not sharded, or shard it with FSDP2"
        )


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate has offloaded a module's own weights, and loads them for each of its forward passes."""
    from accelerate.utils import has_offloaded_params

    return has_offloaded_params(module)


def check_not_offloaded(model: nn.Module) -> None:
    """Raise `WeightsError` if accelerate has offloaded a module of a model, which could not be trained."""
    name = next((name for name, module in model.named_modules() if is_offloaded(module)), None)
    if name is not None:
        raise WeightsError(f"{name} {OFFLOADED}")


def accelerator_or_cpu() -> torch.device:
    """The accelerator if there is one that has double precision, which healing needs; else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found


def is_placed(model: Any) -> bool:
    """Whether a model must stay where it is: sharded, quantized, offloaded or placed by a device map."""
    offloaded = any(parameter.is_meta for parameter in model.parameters())
    return bool(
        is_sharded(model) or offloaded or getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    )


def running_device(module: Any) -> torch.device:
    """The device that runs a module with a weight, whether that lies there or is offloaded."""
    device: torch.device = module.weight.device
    return torch.device(execution_device(module)) if is_offloaded(module) else device


def input_device(model: Any) -> torch.device:
    """The device on which a model reads tokens."""
    return running_device(model.get_input_embeddings())


@contextlib.contextmanager
def whole_tensor(model: Any, name: str, tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor of a model's state dict, whole inside the block: loaded if offloaded, gathered if sharded by FSDP2.

    Args:
        model (`PreTrainedModel`): the model.
        name (`str`): name in its state dict.
        tensor (`torch.Tensor`): the tensor of that name.
    """
    from accelerate.utils import align_module_device

    with contextlib.ExitStack() as stack:
        if tensor.is_meta:
            module, _, attribute = name.rpartition(".")
            stack.enter_context(align_module_device(model.get_submodule(module)))
            tensor = getattr(model.get_submodule(module), attribute)
        yield tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class _LoadedWeights(Mapping[str, torch.Tensor]):
    """The tensors of a model's state dict; those that are offloaded are loaded at each access, and not kept."""

    def __init__(self, model: Any):
        self._model = model

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:  # for which FSDP1 would gather all weights
        tensors: dict[str, torch.Tensor] = self._model.state_dict()
        return tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if not tensor.is_meta:
            return tensor
        with whole_tensor(self._model, name, tensor) as loaded:
            return loaded

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def weights_of(model: Any) -> Mapping[str, torch.Tensor]:
    """The weights of a model by name, offloaded ones included."""
    return _LoadedWeights(model)


def device_name(device: torch.device) -> str:
    """Name of a device, with the number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    number = torch.get_num_threads()
    return f"CPU, {number} thread{'s' * (number != 1)}" if device.type == "cpu" else device.type
