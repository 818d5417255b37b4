"""Devices by name: their peak FLOPs a second and their memory, as vendors state them; and the one at hand, measured."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import WhittleError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from ..subnet import SubnetConfig

UTILIZATION = 0.35
"""Share of its peak that a device is assumed to reach in products."""
SECONDS = 2.0
"""Time that is spent to measure the speed in a precision, at two steps or more."""


@dataclass(frozen=True)
class Device:
    """A device.

    Args:
        name (`str`): its name.
        memory (`int`): bytes.
        bf16, fp32 (`float`): FLOPs a second of dense matrix products; `fp32` of those in full single precision, without
            TF32. Where they were measured, those of training.
        source (`str`): where the figures are from.
        utilization (`float`): share of the peak that is assumed; 1 where the figures were measured.
        is_cpu (`bool`, *optional*, defaults to `False`): whether it is a CPU.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    source: str
    utilization: float = UTILIZATION
    is_cpu: bool = False

    def hours(self, flops: float, precision: str) -> float:
        """Hours of so many FLOPs in `"fp32"` or `"bf16"`."""
        return flops / (getattr(self, precision) * self.utilization) / 3600


def _device(name: str, gigabytes: int, bf16: float, fp32: float, source: str) -> Device:
    return Device(name, gigabytes * 10**9, bf16 * 1e12, fp32 * 1e12, source)


DEVICES = {
    device.name: device
    for device in (
        _device("t4", 16, 65, 8.1, "NVIDIA T4 datasheet; in fp16, as it has no bf16"),
        _device("v100", 32, 125, 15.7, "NVIDIA V100 SXM2 datasheet; in fp16, as it has no bf16"),
        _device("a10", 24, 125, 31.2, "NVIDIA A10 datasheet"),
        _device("a100-40gb", 40, 312, 19.5, "NVIDIA A100 datasheet"),
        _device("a100-80gb", 80, 312, 19.5, "NVIDIA A100 datasheet"),
        _device("l4", 24, 121, 30.3, "NVIDIA L4 datasheet, without sparsity"),
        _device("l40s", 48, 362, 91.6, "NVIDIA L40S datasheet, without sparsity"),
        _device("rtx-3090", 24, 71, 35.6, "NVIDIA GA102 whitepaper, sums in fp32"),
        _device("rtx-4090", 24, 165, 82.6, "NVIDIA Ada whitepaper, sums in fp32"),
        _device("h100-pcie", 80, 756, 51, "NVIDIA H100 datasheet, without sparsity"),
        _device("h100", 80, 989, 67, "NVIDIA H100 SXM datasheet, without sparsity"),
        _device("h200", 141, 989, 67, "NVIDIA H200 datasheet, without sparsity"),
        _device("mi300x", 192, 1307, 163, "AMD MI300X datasheet, without sparsity"),
    )
}
"""Devices by name, for `--device`."""


def find_device(name: str, utilization: float | None = None) -> Device:
    """The device of a name.

    Raises:
        WhittleError: if there is no such device, or the utilization is not a share.
    """
    if name not in DEVICES:
        raise WhittleError(f"unknown device {name!r}; give one of {', '.join(DEVICES)}, or measure the one at hand")
    if utilization is None:
        return DEVICES[name]
    if not 0 < utilization <= 1:
        raise WhittleError(f"utilization must be above 0 and at most 1, got {utilization:g}")
    return replace(DEVICES[name], utilization=utilization)


def measure_device(config: "PreTrainedConfig", subnet: "SubnetConfig", length: int, device: "torch.device") -> Device:
    """Time training steps of a shallow student on this machine.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the student's, of which the first layer is run.
        length (`int`): tokens of a block.
        device (`torch.device`): the device of this machine on which a run works.
    """
    import psutil
    import torch

    from ..cost.counts import training_flops_per_token
    from ..models.placement import device_name
    from .models import shallow

    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    model = shallow(config, subnet).to(device).train()
    tokens = min(length, 512)
    input_ids = torch.randint(config.vocab_size, (max(1, 1024 // tokens), tokens), device=device)
    flops = input_ids.numel() * training_flops_per_token(model.config, sequence_length=tokens)
    rates = {
        name: flops / _seconds_of_step(model, input_ids, enabled) for name, enabled in (("fp32", False), ("bf16", True))
    }
    name = device_name(device) if on_gpu else f"this {device_name(device)}"
    source = f"measured: training steps of one layer of the student, {tokens} tokens a block"
    return Device(name, memory, rates["bf16"], rates["fp32"], source, 1.0, not on_gpu)


def _seconds_of_step(model: Any, input_ids: Any, bf16: bool) -> float:
    """Least time of a forward and backward pass, after one that does not count."""
    import torch

    best, started, steps = float("inf"), time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
        if input_ids.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - before) if steps else best
        steps += 1
    return best
