"""Seconds and peak memory of functions on the device at hand, in turn; one that fails says so and stops no other."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..benchmarks.measuring import resident_megabytes, time_in_turn
from .comparing import HAS_GPU
from .recording import describe, loses_device

Rows = dict[str, dict[str, Any]]


def synchronized(function: Callable[[], Any]) -> None:
    """Run a function until the device has done its work."""
    function()
    if HAS_GPU:
        torch.cuda.synchronize()


def peak_megabytes(function: Callable[[], Any]) -> float:
    """Megabytes that a function needs above what is held before."""
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        synchronized(function)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with open("/proc/self/clear_refs", "w") as peak:  # sets the peak back to what is held now
        peak.write("5")
    before = resident_megabytes("VmRSS")
    function()
    return resident_megabytes("VmHWM") - before


def attempt(function: Callable[[], Any]) -> dict[str, Any]:
    """What a function gives, or the error that it raised, unless nothing more can be done on the device."""
    try:
        return function()
    except Exception as error:
        if loses_device(error):
            raise
        return {"error": describe(error)}


def compare(functions: dict[str, Callable[[], Any]], repeats: int, per: int = 1) -> Rows:
    """Peak memory and median seconds of functions, which run in turn, beside the first one's.

    Args:
        functions (`dict`): by name.
        repeats (`int`): how often each is timed.
        per (`int`): things that a call does; seconds are those of one.
    """
    rows = {name: attempt(partial(_peak_row, function)) for name, function in functions.items()}
    sound = {name: partial(synchronized, function) for name, function in functions.items() if "error" not in rows[name]}
    seconds = time_in_turn(sound, repeats)
    first = seconds.get(next(iter(functions)))
    for name, value in seconds.items():
        rows[name]["seconds"] = round(value / per, 6)
        if first is not None:
            rows[name]["ratio_to_first"] = round(value / first, 4)
    return rows


def _peak_row(function: Callable[[], Any]) -> dict[str, Any]:
    """Peak memory of a function that ran before: what it compiles or caches is no part of it."""
    synchronized(function)
    return {"peak_megabytes": round(peak_megabytes(function), 1)}
