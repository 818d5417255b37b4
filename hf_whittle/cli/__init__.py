"""The command line `hf-whittle COMMAND`: a file for each command."""

import argparse
import logging
import os
from collections.abc import MutableMapping

from ..errors import OutputError, RecipeError, WhittleError
from ..files.disk import disk_errors
from . import demo, extract, info, plan, push, report, run, store_logits
from .keys import read_keys
from .launched import check_can_be_launched, say

NOT_THE_USERS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "huggingface_hub.repocard": "Repo card metadata block was not found",
    "transformers.trainer_utils": "mtime may not be reliable on this filesystem",
}
"""Messages of other libraries that are no concern of the user's, by their logger: a kernel for 4-bit layers where there
are none, a README without metadata beside local text, and the order of checkpoints written within a second."""
COMMANDS = {
    "run": run,
    "plan": plan,
    "extract": extract,
    "push": push,
    "info": info,
    "demo": demo,
    "store-logits": store_logits,
    "report": report,
}


TAKE_KEYS = ("run", "plan", "store-logits")
"""Commands that read a recipe, any key of which can follow it."""
_KEYS = "Any key of the recipe can follow it, such as --training.max_steps 100."

SPINS = "10000"
"""Turns that an OpenMP thread waits for work before it sleeps. With GNU's default, 300,000, it takes the processor from
the very threads that it waits for where programs compete; `tests/benchmarks/busy.py` measures both."""


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
        takes_keys = name in TAKE_KEYS
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=_KEYS if takes_keys else None,
            allow_abbrev=not takes_keys,
        )
        command.add_arguments(added)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status is 0 if it did its work, 1 on an error, 130 if it was interrupted."""
    parser = make_parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command not in TAKE_KEYS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    wait_briefly(os.environ)
    for name, start in NOT_THE_USERS.items():
        logging.getLogger(name).addFilter(_Without(start))
    try:
        check_can_be_launched(options.command)
        if others and not os.path.isfile(os.path.expanduser(options.recipe)):
            raise RecipeError(f"there is no recipe {options.recipe}; keys come after the recipe")
        options.keys = read_keys(others)
        with disk_errors(getattr(options, "output_dir", None) or "a file"):
            COMMANDS[options.command].main(options)
    except (WhittleError, OSError, ImportError) as error:  # transformers: no such checkpoint, a library is missing
        numbered = isinstance(error, OutputError) and error.strerror  # whose text begins with [Errno ...]
        say(f"hf-whittle: error: {numbered or error}", error)
        return 1
    except KeyboardInterrupt as error:
        advice = getattr(COMMANDS[options.command], "INTERRUPTED", "run the same command again to go on")
        say(f"\nhf-whittle: interrupted; {advice}", error)
        return 130
    return 0


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP threads sleep soon, unless the user says how they wait; torch reads it when it is first imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
