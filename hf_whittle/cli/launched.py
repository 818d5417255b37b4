"""Commands in several processes: which of them a launcher may start, and an error that is printed once."""

import sys
import time

from ..errors import WhittleError
from ..processes import is_first, is_shared, leave_group, num_launched

LAUNCHED = ("run", "search", "train", "store-logits", "evaluate")
"""Commands that several processes do together."""
PRECEDENCE = 5.0
"""Seconds that the first process has to print an error before the others do."""


def check_can_be_launched(command: str) -> None:
    """Raise `WhittleError` if a launcher started a command in several processes that works in one."""
    if num_launched() > 1 and command not in LAUNCHED:
        raise WhittleError(
            f"{command} works in one process, {num_launched()} were launched; start it without a launcher, which "
            f"{', '.join(LAUNCHED)} have a use for"
        )


def say(message: str, error: BaseException) -> None:
    """Print why a command ends, once for all processes that end for the same reason.

    The first process may have the same error in a moment: its end makes the launcher end the others.
    """
    is_known = is_shared(error)
    if not is_known:
        leave_group()
    if not is_first():
        if is_known or isinstance(error, KeyboardInterrupt):
            return
        time.sleep(PRECEDENCE)
    print(message, file=sys.stderr, flush=True)
