"""`hf-whittle report`: write an HTML page about a run, or several beside each other."""

import argparse

from .output import Outcome, add_json

HELP = "Write one HTML page about a run, or several beside each other, that needs no network."
EXAMPLE = "hf-whittle report my-run another-run --output report.html"
INTERRUPTED = "nothing was written, run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="folder", help="folder of a run, a student or a search")
    parser.add_argument("--output", default="report.html", help="the page (default: report.html)")
    parser.add_argument(
        "--prompt", action="append", default=[], help="text for the students to continue; can be given several times"
    )
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..report import write_report

    logging.disable_progress_bar()
    path = write_report(options.folders, options.output, prompts=options.prompt)
    return Outcome({"output": str(path.resolve())}, f"The report is in {path.resolve()}")
