"""Processes that a launcher started together: their number, ranks and shares of work, and the end of their group."""

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import OutputError
from .files.locks import folder_lock

Item = TypeVar("Item")


def num_launched() -> int:
    """Number of processes that a launcher started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of the launched processes."""
    return os.environ.get("RANK", "0") == "0"


def launched_processes() -> Any:
    """The `PartialState` of accelerate if several processes were launched, else `None`."""
    if num_launched() < 2:
        return None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    end_group_at_exit()
    return state


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of items that are dealt out in turn to the launched processes."""
    state = launched_processes()
    return items if state is None else items[state.process_index :: state.num_processes]


def own_device() -> Any:
    """The `torch.device` of this process: its accelerator if there is one, else the CPU."""
    import torch

    state = launched_processes()
    if state is not None:
        return state.device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")  # a build for GPUs names an accelerator even if there is none


def wait_for_all() -> None:
    """Wait until every launched process has called this."""
    state = launched_processes()
    if state is not None:
        state.wait_for_everyone()


def from_first(value: Any) -> Any:
    """Return the first process's value in every process."""
    if launched_processes() is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def lock_in_first(folder: str | Path) -> Iterator[None]:
    """Hold `folder_lock` in the first process; if that fails, raise its error in all.

    Every launched process must call this.
    """
    state = launched_processes()
    with contextlib.ExitStack() as held:
        error = None
        if state is None or state.is_main_process:
            try:
                held.enter_context(folder_lock(folder))
            except (OutputError, OSError) as caught:
                error = caught
        error = from_first(error)
        if error is not None:
            raise error
        yield


def end_group_at_exit() -> None:
    """At exit, end a process group that the program has not ended itself, unless the program ends with an exception.

    A group's threads that outlive the interpreter abort a process whose work is done.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.unregister(_end_group)
        atexit.register(_end_group)


def _end_group() -> None:
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):  # an exception: others may wait
        gc.collect()  # sharded models and those under DDP hold the group
        PartialState().destroy_process_group()
