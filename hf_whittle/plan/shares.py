"""Memory of a training in each of several processes."""

import math
from dataclasses import replace

from .facts import Memory

_GATHERED = 2
"""Layers that are whole at a time where weights are sharded: the one that runs, and the next."""


def replicated(memory: Memory) -> Memory:
    """Memory of each process under DDP, which sums gradients in buckets beside them."""
    return replace(memory, gradients=2 * memory.gradients, peak=memory.peak + memory.gradients)


def sharded(memory: Memory, processes: int, layer: int) -> Memory:
    """Memory of each process where all share weights, gradients and states of the optimizer, as FSDP and ZeRO-3 do.

    Args:
        memory (`Memory`): that of one process alone.
        processes (`int`): their number.
        layer (`int`): bytes of the largest layers of student and teacher, which are gathered to run.
    """
    own = {name: math.ceil(getattr(memory, name) / processes) for name in ("weights", "optimizer", "gradients")}
    own["weights"] += _GATHERED * layer
    own["gradients"] += layer
    saved = sum(getattr(memory, name) - value for name, value in own.items())
    in_evaluation = own["weights"] + own["optimizer"] + memory.evaluation
    return replace(memory, **own, peak=max(memory.peak - saved, in_evaluation))
