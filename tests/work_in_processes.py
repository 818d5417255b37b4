"""Script for `torchrun`: two processes print the outcome of work that one does for both, a line for each case."""

import os
import signal
import sys
from pathlib import Path

import torch

from hf_whittle.errors import OutputError, WhittleError
from hf_whittle.processes import (
    any_process,
    first_on_each_machine,
    gathered,
    in_each,
    in_first,
    is_shared,
    launched_processes,
    lock_in_first,
    own_share,
    sees_folder_of_first,
)

RANK = int(os.environ["RANK"])


class PickyError(Exception):
    """An error that no other process can make again from its arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail(error):
    raise error


def outcome(work):
    """The result of work, or its error and whether all processes have it."""
    try:
        return work()
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}({error}), shared: {is_shared(error)}"


def nested():
    """Work that would wait for others, were it not done alone."""
    return in_first(lambda: gathered(RANK)), own_share("ab"), any_process(False)


def cases(folder):
    yield "result", lambda: in_first(lambda: RANK)
    yield "nested", lambda: in_first(nested)
    yield "error", lambda: in_first(lambda: fail(OutputError(28, "disk full")))
    yield "picky", lambda: in_first(lambda: fail(PickyError("can't", "pickle")))
    yield "interrupted", lambda: in_first(lambda: os.kill(os.getpid(), signal.SIGINT))
    yield "gathered", lambda: gathered(RANK)
    yield "any", lambda: (any_process(RANK == 1), any_process(False))
    yield "share", lambda: own_share("abc")
    yield "machine", lambda: first_on_each_machine(lambda: (folder / "made").write_text(str(RANK)))
    yield "made", lambda: (folder / "made").read_text()
    yield "failed machine", lambda: first_on_each_machine(lambda: fail(WhittleError("no text")))
    yield "each", lambda: in_each(lambda: (folder / f"each-{RANK}").touch())
    yield "made by each", lambda: sorted(path.name for path in folder.glob("each-*"))
    yield "failed in one", lambda: in_each(lambda: RANK and fail(WhittleError("no text")))
    yield "disk", lambda: sees_folder_of_first(folder)
    yield "own disk", lambda: sees_folder_of_first(folder / f"of-{RANK}")
    yield "lock", lambda: lock_in_first(folder).__enter__()
    yield "group", lambda: torch.distributed.get_backend(launched_processes() and torch.distributed.group.WORLD)


def main(folder):
    for name, work in cases(Path(folder)):
        print(f"{RANK} {name}: {outcome(work)}\n", end="", flush=True)
    if RANK == 1:
        sys.exit()
    print(f"{RANK} lost: {outcome(lambda: gathered(RANK)).partition('(/')[0]}\n", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
