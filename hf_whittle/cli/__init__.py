"""The command line `hf-whittle COMMAND`: a file for each command."""

import argparse
import logging
import os
import sys
from collections.abc import MutableMapping

from ..errors import OutputError, RecipeError, WhittleError
from ..files.disk import disk_errors
from . import demo, evaluate, extract, info, init, plan, push, report, run, search, store_logits, train
from .completion import PrintCompletion
from .keys import TAKE_KEYS, read_keys
from .launched import check_can_be_launched, say
from .output import print_outcome

NOT_THE_USERS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "huggingface_hub.repocard": "Repo card metadata block was not found",
    "transformers.trainer_utils": "mtime may not be reliable on this filesystem",
}
"""Messages of other libraries that are no concern of the user's, by their logger: a kernel for 4-bit layers where there
are none, a README without metadata beside local text, and the order of checkpoints written within a second."""
COMMANDS = {
    "init": init,
    "plan": plan,
    "run": run,
    "search": search,
    "extract": extract,
    "train": train,
    "store-logits": store_logits,
    "evaluate": evaluate,
    "push": push,
    "report": report,
    "info": info,
    "demo": demo,
}


_KEYS = "Any key of the recipe can follow it, such as --training.max_steps 100."

SPINS = "10000"
"""Turns that an OpenMP thread waits for work before it sleeps. With GNU's default, 300,000, it takes the processor from
the very threads that it waits for where programs compete; `tests/benchmarks/busy.py` measures both."""

SECONDS_OF_BARS = "30"
"""Seconds before the first state of a bar, and between two, where stderr is no terminal; as `progress.LINES_EVERY`."""


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
    parser.add_argument(
        "--print-completion", action=PrintCompletion, help="print a script that completes commands in a shell, and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        takes_keys, example = name in TAKE_KEYS, f"example:\n  {command.EXAMPLE}"
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=f"{_KEYS}\n\n{example}" if takes_keys else example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=not takes_keys,
        )
        command.add_arguments(added)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status is 0 if it did its work, 1 on an error, 130 if it was interrupted."""
    wait_briefly(os.environ)
    if not sys.stderr.isatty():
        show_seldom(os.environ)
    for name, start in NOT_THE_USERS.items():
        logging.getLogger(name).addFilter(_Without(start))
    parser = make_parser()
    options, others = parser.parse_known_args(arguments)
    if others and options.command not in TAKE_KEYS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        check_can_be_launched(options.command)
        if others and not os.path.isfile(os.path.expanduser(options.recipe)):
            raise RecipeError(f"there is no recipe {options.recipe}; keys come after the recipe")
        options.keys, options.given_keys = read_keys(others), others
        with disk_errors(getattr(options, "output_dir", None) or "a file"):
            print_outcome(COMMANDS[options.command].main, options)
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


def show_seldom(environment: MutableMapping[str, str]) -> None:
    """Let bars of other libraries write as seldom as ours; tqdm reads it when it is first imported."""
    for name in ("DELAY", "MININTERVAL", "MAXINTERVAL"):
        environment.setdefault(f"TQDM_{name}", SECONDS_OF_BARS)
