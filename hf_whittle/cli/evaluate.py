"""`hf-whittle evaluate`: perplexity of a model on text, and tasks of lm-evaluation-harness."""

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json, aligned

if TYPE_CHECKING:
    from ..evaluation.harness import Tasks
    from ..evaluation.subject import Subject
    from ..record.evaluation import EvaluationFacts, TextEvaluation
    from ..subnet import SubnetConfig

HELP = "Evaluate a checkpoint, student, adapter or subnet: perplexity on text, tasks of lm-evaluation-harness."
EXAMPLE = 'hf-whittle evaluate my-student --files "texts/*.txt"'
INTERRUPTED = "nothing was recorded, run the same command again"

_OF_TEXT = ("dataset_config", "split", "text_column", "protocol")
_OF_TASKS = ("num_fewshot", "limit", "include_path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint, student or adapter: a folder, or a name on the Hub")
    parser.add_argument("--subnet", help="subnet of the model to evaluate: a subnet.json, or a folder with one")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    text = parser.add_argument_group("text")
    text.add_argument("--files", nargs="+", metavar="PATTERN", help="text: files or patterns")
    text.add_argument("--dataset", help="text instead of files: a name on the Hub, or a folder")
    text.add_argument("--dataset-config", help="configuration of the dataset")
    text.add_argument("--split", help="split of the dataset, such as test[:100] (default: test)")
    text.add_argument("--text-column", help="column that holds the text (default: text)")
    text.add_argument(
        "--protocol",
        choices=("documents", "text", "packed"),
        help="each document as lm_eval does, all as one text as papers do with WikiText, or packed as for training "
        "(default: documents)",
    )
    tasks = parser.add_argument_group("tasks, which need pip install 'hf_whittle[eval]'")
    tasks.add_argument("--tasks", type=_names, metavar="NAME,...", help="tasks of lm_eval, such as lambada_openai,piqa")
    tasks.add_argument("--num-fewshot", type=int, help="examples in the prompt (default: the task's)")
    tasks.add_argument("--limit", type=float, help="examples of each task, or the share of them if below 1")
    tasks.add_argument("--include-path", help="folder with YAML files of your own tasks")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--block-size", type=int, help="most tokens that the model reads at once (default: 2048 at most)")
    how.add_argument(
        "--batch-size",
        type=int,
        help="windows or requests at a time (default: as make 4,096 tokens, or 16,384 on a GPU)",
    )
    how.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="precision")
    how.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the accelerator if there is one)")
    parser.add_argument(
        "--save",
        action=argparse.BooleanOptionalAction,
        help="record it in results.json and on the model card (default: in the folder of a student)",
    )
    add_json(parser)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..evaluation.subject import checked_device, loaded_subject
    from ..processes import first_on_each_machine, in_first, is_first, own_device

    _check_options(options)
    checked_device(options.device)
    logging.disable_progress_bar()
    subnet = _subnet(options)
    tasks = cache(lambda: None if options.tasks is None else _tasks(options))
    texts = cache(lambda: _texts(options) if _has_text(options) else None)
    for read in (tasks, texts):
        first_on_each_machine(read)  # what the others find in the cache of datasets
        read()
    where = {"dtype": options.dtype, "device": options.device or own_device()}
    with loaded_subject(options.model, subnet=subnet, revision=options.revision, **where) as subject:
        found = _evaluated(options, subject, texts(), tasks())
    text = in_words(found)
    try:
        in_first(lambda: _save(options, found))
    except BaseException:  # a file that cannot be written, another one that is damaged, or Ctrl-C
        if is_first():
            print(text, file=sys.stderr, flush=True)  # else it would be lost
        raise
    return Outcome(_as_json(options, found), text)


def _check_options(options: argparse.Namespace) -> None:
    """Check that the options go together, and that what is to be recorded has a place."""
    from ..errors import DataError, OutputError
    from ..processes import num_launched

    if options.files is not None and options.dataset is not None:
        raise DataError("give either --files or --dataset, not both")
    if not _has_text(options) and options.tasks is None:
        raise DataError("there is nothing to evaluate on: give text with --files or --dataset, or --tasks")
    for needs, names in (("--files or --dataset", _OF_TEXT), ("--tasks", _OF_TASKS)):
        has = _has_text(options) if names is _OF_TEXT else options.tasks is not None
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        if given and not has:
            raise DataError(f"{', '.join(given)} has no effect without {needs}; add it, or leave {given[0]} out")
    if options.batch_size is not None and options.batch_size < 1:
        raise DataError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.device is not None and num_launched() > 1:
        raise DataError("--device has no effect in several processes, each of which has its own; leave it out")
    if options.save and (options.subnet is not None or not Path(options.model).expanduser().is_dir()):
        raise OutputError(
            "--save records in the folder of a student; the model is a subnet of a super-network, or on the Hub. "
            "Extract or download it first, or leave --save out"
        )


def _has_text(options: argparse.Namespace) -> bool:
    return options.files is not None or options.dataset is not None


def _subnet(options: argparse.Namespace) -> "SubnetConfig | None":
    from .extract import read_subnet

    return None if options.subnet is None else read_subnet(options.subnet)


def _tasks(options: argparse.Namespace) -> "Tasks":
    from ..evaluation.harness import load_tasks

    settings = {name: getattr(options, name) for name in _OF_TASKS}
    return load_tasks(options.tasks, **settings)


def _texts(options: argparse.Namespace) -> list[str]:
    from ..data.documents import load_documents
    from ..errors import DataError

    column = options.text_column or "text"
    documents = load_documents(
        options.dataset, options.files, options.dataset_config, options.split or "test", text_column=column
    )
    if column not in documents.column_names:
        raise DataError(f"the dataset has no column {column!r}, only {documents.column_names}; give --text-column")
    return [text for text in documents[column] if text]


def _evaluated(options: argparse.Namespace, subject: "Subject", texts: Any, tasks: Any) -> "EvaluationFacts":
    """Measure a model; facts of it."""
    from ..processes import launched_processes, own_device
    from ..record.evaluation import EvaluationFacts, task_evaluations
    from ..record.source import precision_of
    from ..record.training import environment

    precision = precision_of(subject.model)
    of_texts = () if texts is None else (_on_texts(options, subject, texts, precision),)
    of_tasks: Any = ()
    if tasks is not None:
        from accelerate import Accelerator

        from ..evaluation.batches import blocks_for
        from ..evaluation.harness import run_tasks
        from ..evaluation.texts import checked_block_size

        config: Any = subject.model.config
        length = checked_block_size(config, options.block_size)
        found = run_tasks(
            subject.model,
            subject.tokenizer,
            tasks,
            batch_size=options.batch_size or blocks_for(subject.model, length, in_chunks=False),
            max_length=options.block_size,
            accelerator=None if launched_processes() is None else Accelerator(),
        )
        of_tasks = task_evaluations(found, limit=tasks.limit, precision=precision) if found else ()
    return EvaluationFacts(texts=of_texts, tasks=of_tasks, environment=environment(own_device()))


def _on_texts(
    options: argparse.Namespace, subject: "Subject", texts: list[str], precision: str | None
) -> "TextEvaluation":
    from ..data.documents import STANDARD_LIBRARY
    from ..evaluation.texts import measure_texts
    from ..processes import launched_processes
    from ..record.data import name_of_text
    from ..record.evaluation import TextEvaluation

    measured = measure_texts(
        subject.model,
        subject.tokenizer,
        texts,
        protocol=options.protocol or "documents",
        block_size=options.block_size,
        batch_size=options.batch_size,
        is_spread=launched_processes() is not None,
        progress="text",
    )
    has_splits = options.dataset not in (None, STANDARD_LIBRARY)
    return TextEvaluation(
        **name_of_text(options.dataset, options.files),
        config=options.dataset_config,
        split=(options.split or "test") if has_splits else None,
        protocol=measured.protocol,
        block_size=measured.block_size,
        tokens=measured.predicted,
        bytes=measured.bytes,
        perplexity=measured.perplexity,
        bits_per_byte=measured.bits_per_byte,
        word_perplexity=measured.word_perplexity,
        precision=precision,
    )


def _save(options: argparse.Namespace, found: "EvaluationFacts") -> None:
    """Record evaluations in the folder of a student, and on its card unless somebody wrote or changed that."""
    from ..hub.saving import describe
    from ..record.files import RESULTS_FILE
    from ..record.results import record_evaluation
    from ..subnet import SUBNET_FILE

    folder = Path(options.model).expanduser()
    is_student = options.subnet is None and any((folder / name).is_file() for name in (RESULTS_FILE, SUBNET_FILE))
    if options.save or (options.save is None and is_student):
        record_evaluation(folder, found)
        describe(folder)


def _as_json(options: argparse.Namespace, found: "EvaluationFacts") -> dict[str, Any]:
    known = {"model": options.model, "subnet": options.subnet}
    return {**{name: value for name, value in known.items() if value is not None}, **found.to_dict()}


def in_words(found: "EvaluationFacts") -> str:
    """Tables of evaluations."""
    tables: list[list[tuple[str, ...]]] = []
    if found.texts:
        rows: list[tuple[str, ...]] = [
            ("text", "protocol", "window", "tokens", "perplexity", "bits per byte", "word perplexity")
        ]
        for text in found.texts:
            figures = (f"{value:.6g}" for value in (text.perplexity, text.bits_per_byte, text.word_perplexity))
            rows.append((text.in_words, text.protocol, f"{text.block_size:,}", f"{text.tokens:,}", *figures))
        tables.append(rows)
    if found.tasks:
        rows = [("task", "metric", "shots", "value", "error")]
        for task in found.tasks:
            error = "" if task.error is None else f"{task.error:.4g}"
            rows.append(
                (task.title, task.metric, "" if task.shots is None else str(task.shots), f"{task.value:.6g}", error)
            )
        tables.append(rows)
    return "\n\n".join("\n".join(line.rstrip() for line in aligned(rows, words=2)) for rows in tables)
