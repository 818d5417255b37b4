"""Costs of a subnet, parameters, FLOPs, bytes and latency, and bins of them."""

from ..models.padding import padded_shape
from .bins import Bin, FlopsBin, KVCacheBin, ParameterBin, WeightBytesBin
from .counts import flops_per_token, kv_cache_bytes_per_token, num_parameters, training_flops_per_token, weight_bytes
from .latency import LatencyBin
from .polynomial import Polynomial, flops_polynomial, kv_cache_polynomial, parameter_polynomial

__all__ = [
    "Bin",
    "FlopsBin",
    "KVCacheBin",
    "LatencyBin",
    "ParameterBin",
    "Polynomial",
    "WeightBytesBin",
    "flops_per_token",
    "flops_polynomial",
    "kv_cache_bytes_per_token",
    "kv_cache_polynomial",
    "num_parameters",
    "padded_shape",
    "parameter_polynomial",
    "training_flops_per_token",
    "weight_bytes",
]
