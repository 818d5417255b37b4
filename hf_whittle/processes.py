"""The processes that a launcher started together, and the end of their group."""

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError
from .files.locks import folder_lock


def launched_processes() -> Any:
    """The `PartialState` of accelerate where several processes were launched, else `None`."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    end_group_at_exit()
    return state


def from_first(value: Any) -> Any:
    """The first process' value, in every process."""
    if launched_processes() is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


@contextlib.contextmanager
def lock_in_first(folder: str | Path) -> Iterator[None]:
    """Hold `folder_lock` in the first process. Every process has to come here: an error in that one is one in all."""
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
    """End the process group, if there is one, when the program ends well and has not ended it itself.

    Threads of a group that outlive the interpreter abort the process, after its work is done.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.unregister(_end_group)
        atexit.register(_end_group)


def _end_group() -> None:
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):  # of an exception: others may wait
        gc.collect()  # models in shards or under DDP, which hold the group
        PartialState().destroy_process_group()
