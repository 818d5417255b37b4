"""The processes that a launcher started together, and the end of their group."""

import atexit
import gc
import os
import sys
from typing import Any


def launched_processes() -> Any:
    """The `PartialState` of accelerate where several processes were launched, else `None`."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    end_group_at_exit()
    return state


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
