"""Seconds and peak memory of functions on the device, timed in turn; one that fails does not stop the others."""

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
    """Peak megabytes of a function above those in use before it."""
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
    """Result of a function, or its error; an error that makes the device unusable is raised."""
    try:
        return function()
    except Exception as error:
        if loses_device(error):
            raise
        return {"error": describe(error)}


def compare(functions: dict[str, Callable[[], Any]], repeats: int, per: int = 1) -> Rows:
    """Measure peak memory and median seconds of functions in turn, and the ratio of seconds to the first one's.

    Args:
        functions (`dict`): functions by name.
        repeats (`int`): number of times each is timed.
        per (`int`): items that a call processes; seconds are per item.
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
    """Peak memory of a function in its second call, without memory for compiling or caching."""
    synchronized(function)
    return {"peak_megabytes": round(peak_megabytes(function), 1)}
