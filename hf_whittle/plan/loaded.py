"""Bytes of the teacher and the super-network as a recipe loads them, by where they lie."""

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architectures.table import Weight
from ..models.weights import all_weights, weight_shape
from ..recipe.loading import LoadingSection, is_part
from ..subnet import Shape

_FREE = 0.9
"""Share of a device that a device map such as auto fills."""
_NOT_THERE = ("cpu", "disk")


@dataclass(frozen=True)
class Loaded:
    """A loaded model.

    Args:
        bytes (`int`): all of its weights.
        on_device (`int`): those that lie on the device and, if some are offloaded, the most that come there to run; 0
            if the model runs on the CPU instead.
        offloaded (`int`): those that lie elsewhere, and come to the device in each forward pass.
        dtype (`torch.dtype`): precision of weights that are not quantized.
        is_known (`bool`): whether the bits of its quantizer are known; else they are planned as not quantized.
        is_in_16_bits (`bool`): whether its products run in 16 bits.
    """

    bytes: int
    on_device: int
    offloaded: int
    dtype: torch.dtype
    is_known: bool
    is_in_16_bits: bool


def loaded(config: PreTrainedConfig, section: LoadingSection, available: int, on_cpu: bool) -> Loaded:
    """A model as a section of a recipe loads it.

    Args:
        config (`PreTrainedConfig`): its configuration.
        section (`LoadingSection`): the section.
        available (`int`): bytes of the device.
        on_cpu (`bool`): whether the device is a CPU.
    """
    dtype, bits = _dtype(config, section), _bits(section)
    about = section.quantization_config is None or bits is not None, _computes_in(section, dtype).itemsize == 2
    sizes = dict(_sizes(config, dtype, bits))
    total, most = sum(sizes.values()), _largest_layer(config, sizes)
    if not on_cpu and _runs_on_cpu(section):
        return Loaded(total, 0, 0, dtype, *about)
    offloaded, on_device = _offloaded(sizes, section, available, on_cpu), total
    if isinstance(section.device_map, dict):
        on_device = max(_by_place(sizes, section.device_map, on_cpu).values(), default=0)
    elif section.max_memory is not None or offloaded:
        devices = max(1, sum(isinstance(device, int) for device in section.max_memory or {}))
        on_device = math.ceil((total - offloaded) / devices)
    return Loaded(total, on_device + (most if offloaded else 0), offloaded, dtype, *about)


def _runs_on_cpu(section: LoadingSection) -> bool:
    """Whether a model lies on the CPU and on disk alone, and accelerate therefore runs it on the CPU."""
    given = section.device_map
    if isinstance(given, dict):
        return all(place in _NOT_THERE for place in given.values())
    devices = section.max_memory or {}
    return given == "cpu" or (bool(devices) and not any(isinstance(device, int) for device in devices))


def largest_layer(config: PreTrainedConfig) -> int:
    """Bytes of the largest layer or embedding in single precision: what healing from files holds of a model."""
    return _largest_layer(config, dict(_sizes(config, torch.float32, None)))


def _dtype(config: PreTrainedConfig, section: LoadingSection) -> torch.dtype:
    stated = config.dtype if section.dtype == "auto" else section.dtype or "float32"
    found = getattr(torch, stated, None) if isinstance(stated, str) else stated
    return found if isinstance(found, torch.dtype) else torch.float32


def _computes_in(section: LoadingSection, dtype: torch.dtype) -> torch.dtype:
    """Precision of the products of most layers; 4-bit layers of bitsandbytes have one of their own."""
    settings = section.quantization_config or {}
    if settings.get("load_in_8bit"):
        return torch.float16
    stated = settings.get("bnb_4bit_compute_dtype", "float32") if settings.get("load_in_4bit") else dtype
    found = getattr(torch, stated, dtype) if isinstance(stated, str) else stated
    return found if isinstance(found, torch.dtype) else dtype


def _bits(section: LoadingSection) -> float | None:
    """Bits of a quantized weight, scales included; `None` if nothing is quantized, or they are not known."""
    if section.quantization_config is None:
        return None
    settings = section.quantization_config
    with contextlib.suppress(ImportError):  # its library is missing here
        settings = {**settings, **section.quantizer_config().to_dict()}
    if settings.get("load_in_4bit"):
        return 4 + (8 / 64 + 32 / (64 * 256) if settings.get("bnb_4bit_use_double_quant") else 32 / 64)
    if settings.get("load_in_8bit"):
        return 8
    for name in ("bits", "nbits", "num_bits"):
        if isinstance(settings.get(name), int):
            return float(settings[name]) + 32 / (settings.get("group_size") or 64)  # a scale and a zero
    named = (str(settings.get(name, "")) for name in ("weights", "quant_type", "quant_method"))
    found = next((match for each in named if (match := re.search(r"(?:int|float|fp)(\d+)", each.lower()))), None)
    return None if found is None else float(found[1])


def _sizes(config: PreTrainedConfig, dtype: torch.dtype, bits: float | None) -> Iterator[tuple[str, int]]:
    """The bytes of each weight; shared ones once. Quantizers leave embeddings, output matrix and norms as they are."""
    shape = Shape.from_config(config)
    for weight, layer in all_weights(config):
        if not weight.is_shared(config):
            number = math.prod(weight_shape(weight, config, shape, layer or 0))
            each = bits / 8 if bits is not None and _is_quantized(weight) else dtype.itemsize
            yield weight.name.format(layer=layer), math.ceil(number * each)


def _is_quantized(weight: Weight) -> bool:
    return weight.is_matmul and weight.in_layer


def _largest_layer(config: PreTrainedConfig, sizes: dict[str, int]) -> int:
    """Bytes of the layer, embedding or output matrix with the most."""
    groups: dict[Any, int] = defaultdict(int)
    for weight, layer in all_weights(config):
        name = weight.name.format(layer=layer)
        groups[name if layer is None else layer] += sizes.get(name, 0)
    return max(groups.values())


def _place_of(name: str, device_map: dict[str, Any]) -> Any:
    """The place of the module that a weight is part of."""
    return next((place for module, place in device_map.items() if is_part(name, module)), None)


def _by_place(sizes: dict[str, int], device_map: dict[str, Any], on_cpu: bool) -> dict[Any, int]:
    """Bytes on each device of a map."""
    elsewhere = ("disk",) if on_cpu else _NOT_THERE
    found: dict[Any, int] = defaultdict(int)
    for name, size in sizes.items():
        place = _place_of(name, device_map)
        if place not in elsewhere:
            found[place] += size
    return found


def _offloaded(sizes: dict[str, int], section: LoadingSection, available: int, on_cpu: bool) -> int:
    """Bytes that lie elsewhere than on the devices."""
    total, given = sum(sizes.values()), section.device_map
    if isinstance(given, dict):
        return total - sum(_by_place(sizes, given, on_cpu).values())
    if section.max_memory is not None:
        limits = [_bytes(size) for device, size in section.max_memory.items() if isinstance(device, int) or on_cpu]
        return max(0, total - sum(limits)) if limits else 0
    is_placed = given is not None and given.startswith(("auto", "balanced", "sequential"))
    return max(0, total - int(_FREE * available)) if is_placed else 0


def _bytes(size: int | str) -> int:
    from accelerate.utils import convert_file_size_to_int

    found: int = convert_file_size_to_int(size.replace(" ", "")) if isinstance(size, str) else size
    return found
