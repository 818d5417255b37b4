"""The command line: `hf-whittle COMMAND`, a file for each command."""

import argparse
import sys

from ..disk import disk_errors
from ..errors import WhittleError
from . import demo, extract, push, run, store_logits

COMMANDS = {"run": run, "extract": extract, "push": push, "demo": demo, "store-logits": store_logits}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from .. import __version__

    parser = argparse.ArgumentParser(prog="hf-whittle", description="Small language models from large ones.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=command.HELP))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; exit status 0 if it did its work, 1 on an error, 130 if it was interrupted."""
    options = make_parser().parse_args(arguments)
    try:
        with disk_errors(getattr(options, "output_dir", None) or "a file"):
            COMMANDS[options.command].main(options)
    except (WhittleError, OSError, ImportError) as error:  # of transformers: no such checkpoint, a library is missing
        print(f"hf-whittle: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        advice = getattr(COMMANDS[options.command], "INTERRUPTED", "run the same command again to go on")
        print(f"\nhf-whittle: interrupted; {advice}", file=sys.stderr)
        return 130
    return 0
