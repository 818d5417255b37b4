"""`hf-whittle init`: write a recipe for a teacher, a size of student and this machine."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json

if TYPE_CHECKING:
    from ..plan.draft import Draft

HELP = "Write a commented recipe for a teacher, a size of student and this machine, which is measured."
EXAMPLE = 'hf-whittle init EleutherAI/pythia-410m --parameters 160e6 --files "texts/**/*.txt"'
INTERRUPTED = "nothing was written"

_TEXT = "texts/**/*.txt"
_FRACTIONS = ((1e7, 0.1), (1e8, 0.05))
"""Held-out share of a text of at most so many bytes; that of longer ones is the default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help="model to learn from and to extract from: a folder, or a name on the Hub")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--parameters", type=float, help="parameters of the student, such as 160e6")
    size.add_argument("--ratio", type=float, default=0.4, help="the same as a share of the teacher's (default: 0.4)")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--files", metavar="PATTERN", help=f'training text: files or a pattern (default: "{_TEXT}")')
    text.add_argument("--dataset", help="training text instead of files: a name on the Hub, or a folder")
    parser.add_argument("--output", default="recipe.yaml", help="file of the recipe, a new one (default: recipe.yaml)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from ..errors import OutputError
    from ..files.disk import disk_errors
    from ..files.paths import expanded
    from ..files.text import write_text
    from ..plan.draft import draft_recipe

    path = Path(expanded(options.output))
    if path.exists():
        raise OutputError(f"{path} exists already; choose another --output, or remove it")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} for {path}; make it, or choose another --output")
    name = Path(expanded(options.teacher)).resolve().name  # of a name on the Hub, the last part
    size = {"parameters": options.parameters, "ratio": options.ratio}
    draft = draft_recipe(options.teacher, f"{name}-whittled", text_of(options), **size)
    with disk_errors(path):
        write_text(path, written(draft, options))
    following = [shlex.join(["hf-whittle", command, options.output]) for command in ("plan", "run")]
    facts = {"recipe": str(path), "values": draft.values, "plan": draft.plan.to_dict(), "next": following}
    return Outcome(facts, summary(draft, options, following))


def text_of(options: argparse.Namespace) -> dict[str, Any]:
    """Keys of a recipe that name the text, and how much of it is held out.

    Raises:
        DataError: if no file matches.
    """
    if options.dataset is not None:
        return {"dataset": options.dataset}
    if options.files is None:
        return {"files": [_TEXT]}
    from ..data.text_files import find_files

    size = sum(Path(file).stat().st_size for file in find_files(options.files))
    share = next((share for most, share in _FRACTIONS if size <= most), None)
    held_out = {} if share is None else {"search_fraction": share, "test_fraction": share}
    return {"files": [options.files], **held_out}


def comments(draft: "Draft", options: argparse.Namespace) -> dict[str, str]:
    """What to say above a key of the recipe, by its path."""
    training, plan = draft.values["training"], draft.plan
    blocks = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    tokens, hours = plan.stage("student").tokens, {stage.name: stage.hours or 0 for stage in plan.stages}
    given = options.files is not None or options.dataset is not None
    return {
        "teacher": f"{draft.teacher:,} parameters; the student is extracted from it, and learns from it.",
        "data": "The text to train on; parts of it are held out to search and to report on."
        if given
        else "Put your text here: files, or dataset: a name on the Hub.",
        "data.search_tokens": "Tokens that each candidate of the search is judged on.",
        "data.test_tokens": "Tokens that perplexities are reported on.",
        "bin": f"Parameters of the student, around {draft.target:,}.",
        "search": f"About {_time(hours['search'])}; hf-whittle search does it alone.",
        "search.fitness": "Of slices; healed-perplexity heals each candidate, for more time and memory.",
        "search.batch_size": "Blocks at a time, as memory allows.",
        "training": f"Any field of DistillationConfig. {tokens:,} tokens take about {_time(hours['student'])}.",
        "training.per_device_train_batch_size": f"{blocks} blocks in a step, as many at a time as memory allows.",
        "training.learning_rate": "A usual one for this size.",
        "training.bf16": "Faster here than single precision, as measured.",
        "training.activation_checkpointing": "Fits into memory only if each layer is run twice.",
        "teacher_options": "Fits into memory only in 16 bits.",
        "baseline": "true also trains the same architecture from random initialization, to compare with.",
    }


def written(draft: "Draft", options: argparse.Namespace) -> str:
    """The recipe as YAML, with comments."""
    device = draft.plan.device
    memory = f"{device.memory / 1e9:.1f} GB"
    lines = [
        f"# Drafted by `hf-whittle init` for {device.name}; a plan may take {memory} of its memory.",
        "# Keys that are left out have their defaults: docs/recipes.md.",
        *_lines(draft.values, comments(draft, options)),
    ]
    problems = [f"# {problem.stage} does not fit: {'; or '.join(problem.changes)}." for problem in draft.plan.problems]
    return "\n".join([*lines, *problems]) + "\n"


def _lines(values: dict[str, Any], comments: dict[str, str], section: str = "", indent: str = "") -> list[str]:
    from ..files.yaml import as_yaml

    found: list[str] = []
    for name, value in values.items():
        path = f"{section}{name}"
        if path in comments:
            found.append(f"{indent}# {comments[path]}")
        if isinstance(value, dict):
            found += [f"{indent}{name}:", *_lines(value, comments, f"{path}.", f"{indent}  ")]
        else:
            found += [f"{indent}{line}" for line in as_yaml({name: value}).splitlines()]
    return found


def summary(draft: "Draft", options: argparse.Namespace, following: list[str]) -> str:
    """Say what was chosen, and what to do next."""
    training, bin, plan = draft.values["training"], draft.values["bin"], draft.plan
    times = ", ".join(f"{stage.name} {_time(stage.hours or 0)}" for stage in plan.stages)
    lines = [
        f"{options.output}: a student of {bin['low']:,} to {bin['high']:,} parameters from a teacher of "
        f"{draft.teacher:,}, {training['max_steps']:,} steps of training.",
        f"On {plan.device.name}: {times}.",
    ]
    lines += [f"{problem.stage} does not fit: {'; or '.join(problem.changes)}." for problem in plan.problems]
    if options.files is None and options.dataset is None:
        lines.append(f"It names {_TEXT} as the text: put yours there, or change data.")
    return "\n".join([*lines, "", "Next:", *(f"  {command}" for command in following)])


def _time(hours: float) -> str:
    from .plan import time_in_words

    return time_in_words(hours)
