"""Processes that a launcher started together: their number and ranks, work of the first one, the end of their group.

Every process calls the functions that wait for others, in the same order. In work that one does for all, it is alone.
"""

import atexit
import contextlib
import gc
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from .errors import WhittleError
from .files.disk import disk_errors
from .files.locks import folder_lock

Item = TypeVar("Item")
Value = TypeVar("Value")
Error = TypeVar("Error", bound=BaseException)

_TIMEOUT = timedelta(minutes=30)
"""For how long collective work on tensors may take, as by default in `TrainingArguments`; NCCL has 10 minutes."""
_LONGEST_WAIT = timedelta(days=1)
"""For how long processes wait for work that one does alone; the end of a process ends the wait of the others."""
_is_alone = False
_SHARED = "_is_shared_by_processes"
_waiting: tuple[Any, Any] = (None, None)  # the process group, and the group on CPUs in which its processes wait


def num_launched() -> int:
    """Number of processes that a launcher started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_on_machine() -> int:
    """Number of processes that a launcher started on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_launched()))


def is_first() -> bool:
    """Whether this is the first of the launched processes."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_machine() -> bool:
    """Whether this is the first of the processes launched on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def launched_processes() -> Any:
    """The `PartialState` of accelerate if several processes were launched and work together, else `None`."""
    if num_launched() < 2 or _is_alone:
        return None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_TIMEOUT)
    end_group_at_exit()
    return state if state.num_processes > 1 else None


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


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in their order, in every process."""
    if launched_processes() is None:
        return [value]
    import torch

    values: list[Any] = [None] * num_launched()
    with _lost_process():
        torch.distributed.all_gather_object(values, value, group=_waiting_group())
    return values


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    if launched_processes() is None:
        return flag
    import torch

    flags = torch.tensor(int(flag))
    with _lost_process():
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=_waiting_group())
    return bool(flags)


def wait_for_all() -> None:
    """Wait until every launched process has called this."""
    any_process(False)


def in_first(work: Callable[[], Value]) -> Value:
    """Do work in the first process while the others wait; return its result, or raise its error, in all."""
    if launched_processes() is None:
        return work()
    if not is_first():
        result, error = _from_first(None)
        if error is not None:
            raise shared(error)
        return result
    try:
        with _alone():
            result = work()
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(WhittleError):  # another process has ended
            _from_first((None, _portable(error)))
            shared(error)
        raise
    return _from_first((result, None))[0]


def first_on_each_machine(work: Callable[[], Any]) -> None:
    """Do work in the first process of each machine while its others wait, which find what it left in caches."""
    _at_once(work, is_first_on_machine())


def in_each(work: Callable[[], Any]) -> None:
    """Do work in every process at the same time; an error in one is raised in all."""
    _at_once(work, True)


def _at_once(work: Callable[[], Any], is_own: bool) -> None:
    """Do work in those processes whose own it is, and raise an error of one in all."""
    error: BaseException | None = None
    if is_own:
        try:
            with _alone():
                work()
        except Exception as caught:
            error = caught
    errors = gathered(None if error is None else _portable(error))
    if error is None:
        error = next((of_other for of_other in errors if of_other is not None), None)
    if error is not None:
        raise shared(error)


def shared(error: Error) -> Error:
    """Mark an error as one that every process raises."""
    setattr(error, _SHARED, True)
    return error


def is_shared(error: BaseException | None) -> bool:
    """Whether every process raises an error, or the one that it was raised from."""
    return error is not None and (getattr(error, _SHARED, False) or is_shared(error.__cause__))


@contextlib.contextmanager
def lock_in_first(folder: str | Path) -> Iterator[None]:
    """Hold `folder_lock` in the first process; if that fails, raise its error in all."""
    with contextlib.ExitStack() as held:
        in_first(lambda: held.enter_context(folder_lock(folder)))
        yield


def sees_folder_of_first(folder: str | Path) -> bool:
    """Whether a folder is the same for this process as for the first one, not on a disk of another machine.

    The first makes a file of a new name in it, as network file systems may show a file under a name it no longer has.
    """
    if launched_processes() is None:
        return True
    seen = Path(folder, in_first(lambda: _make_new_file(folder)))
    sees = seen.exists()
    wait_for_all()
    if is_first():
        seen.unlink(missing_ok=True)
    return sees


def _make_new_file(folder: str | Path) -> str:
    file = Path(folder, f"_partial-{uuid.uuid4().hex}")
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return file.name


def end_group_at_exit() -> None:
    """At exit, end a process group that the program has not ended itself, unless the program ends with an exception.

    A group's threads that outlive the interpreter abort a process whose work is done.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.unregister(_end_group)
        atexit.register(_end_group)


def leave_group() -> None:
    """Do not end the process group at exit, since other processes may wait in it."""
    atexit.unregister(_end_group)


def _waiting_group() -> Any:
    """The group of all processes in which they wait long, without a device that would count it as a failure."""
    global _waiting
    import torch

    group = torch.distributed.group.WORLD
    if _waiting[0] is not group:
        _waiting = group, torch.distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    return _waiting[1]


def _from_first(value: Any) -> Any:
    import torch

    values = [value]
    with _lost_process():
        torch.distributed.broadcast_object_list(values, src=0, group=_waiting_group())
    return values[0]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Inside the block, this process works while others wait, and waits for none."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    """Say in words that a wait has failed."""
    try:
        yield
    except RuntimeError as error:
        raise WhittleError(
            f"another process has ended, and so does this one; see what it said ({str(error).splitlines()[0]})"
        ) from error


def _portable(error: BaseException) -> BaseException:
    """An error that other processes can raise too."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return WhittleError(f"{type(error).__name__}: {error}")


def _end_group() -> None:
    global _waiting
    import torch
    from accelerate import PartialState

    _waiting = None, None
    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):  # an exception: others may wait
        gc.collect()  # sharded models and those under DDP hold the group
        PartialState().destroy_process_group()
