"""Timing in turn, peak memory in a process of its own, and what machine it was."""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any


def time_in_turn(functions: dict[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each function; they run in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
    """Megabytes by which the peak of a fresh process rises above what it held after `prepare`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(prepare, work, sender))
    process.start()
    sender.close()  # so that a process that dies ends the wait
    megabytes = receiver.recv()
    process.join()
    return megabytes


def _measure_peak(prepare: Callable[[], Any], work: Callable[[Any], Any], sender: Any) -> None:
    prepared = prepare()
    sender.send(peak_of(lambda: work(prepared))[1])


def peak_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result of `work`, and megabytes by which the peak of this process rises above what it held before."""
    with open("/proc/self/clear_refs", "w") as peak:  # sets the peak back to what is held now
        peak.write("5")
    before = resident_megabytes("VmRSS")
    result = work()
    return result, resident_megabytes("VmHWM") - before


def resident_megabytes(field: str) -> float:
    """`VmRSS`, what the process holds, or `VmHWM`, the most it held."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))


def environment() -> dict[str, Any]:
    import torch
    import transformers

    with open("/proc/cpuinfo") as info:
        model = next(
            (line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor()
        )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
