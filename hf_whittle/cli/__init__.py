"""The command line `hf-whittle COMMAND`: a file for each command."""

import argparse
import logging
import sys
import time

from ..errors import OutputError, WhittleError
from ..files.disk import disk_errors
from ..processes import is_first, is_shared, leave_group, num_launched
from . import demo, extract, plan, push, run, store_logits

NOT_THE_USERS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "huggingface_hub.repocard": "Repo card metadata block was not found",
    "transformers.trainer_utils": "mtime may not be reliable on this filesystem",
}
"""Messages of other libraries that are no concern of the user's, by their logger: a kernel for 4-bit layers where there
are none, a README without metadata beside local text, and the order of checkpoints written within a second."""
COMMANDS = {"run": run, "plan": plan, "extract": extract, "push": push, "demo": demo, "store-logits": store_logits}

LAUNCHED = ("run", "store-logits")
"""Commands that several processes do together."""
_PRECEDENCE = 5.0
"""Seconds that the first process has to report an error before the others do."""


class _Without(logging.Filter):
    """Leaves out messages that start with a text."""

    def __init__(self, start: str):
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._start)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    from .. import __version__

    parser = argparse.ArgumentParser(prog="hf-whittle", description="Small language models from large ones.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=command.HELP))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status is 0 if it did its work, 1 on an error, 130 if it was interrupted."""
    options = make_parser().parse_args(arguments)
    for name, start in NOT_THE_USERS.items():
        logging.getLogger(name).addFilter(_Without(start))
    try:
        _check_can_be_launched(options.command)
        with disk_errors(getattr(options, "output_dir", None) or "a file"):
            COMMANDS[options.command].main(options)
    except (WhittleError, OSError, ImportError) as error:  # transformers: no such checkpoint, a library is missing
        numbered = isinstance(error, OutputError) and error.strerror  # whose text begins with [Errno ...]
        _say(f"hf-whittle: error: {numbered or error}", error)
        return 1
    except KeyboardInterrupt as error:
        advice = getattr(COMMANDS[options.command], "INTERRUPTED", "run the same command again to go on")
        _say(f"\nhf-whittle: interrupted; {advice}", error)
        return 130
    return 0


def _check_can_be_launched(command: str) -> None:
    """Raise `WhittleError` if a launcher started a command in several processes that works in one."""
    if num_launched() > 1 and command not in LAUNCHED:
        raise WhittleError(
            f"{command} works in one process, {num_launched()} were launched; start it without a launcher, which "
            f"{' and '.join(LAUNCHED)} have a use for"
        )


def _say(message: str, error: BaseException) -> None:
    """Print why a command ends, once for all processes that end for the same reason.

    The first process may have the same error in a moment: its end makes the launcher end the others.
    """
    is_known = is_shared(error)
    if not is_known:
        leave_group()
    if not is_first():
        if is_known or isinstance(error, KeyboardInterrupt):
            return
        time.sleep(_PRECEDENCE)
    print(message, file=sys.stderr, flush=True)
