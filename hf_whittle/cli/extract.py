"""`hf-whittle extract`: extract a student from a checkpoint, and heal it if asked to."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json

if TYPE_CHECKING:
    import torch

    from ..subnet import SubnetConfig

HELP = "Extract a student from a checkpoint, and heal it on text if asked to."
EXAMPLE = "hf-whittle extract EleutherAI/pythia-410m --subnet subnet.json --output-dir my-student"
INTERRUPTED = "nothing was written, run the same command again"

_HEALING_DEFAULTS: dict[str, Any] = {
    "files": None, "dataset": None, "dataset_config": None, "split": "train", "text_column": "text",
    "block_size": None, "calibration_tokens": 32768,
}  # fmt: skip
"""Defaults of the options that have no effect without healing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="super-network to extract from: a folder, or a name on the Hub")
    parser.add_argument("--subnet", required=True, help="subnet to keep: a subnet.json, or a folder with one")
    parser.add_argument("--output-dir", required=True, help="folder of the student, new or empty")
    parser.add_argument(
        "--format",
        choices=("auto", "stock", "whittle", "padded"),
        default="auto",
        help="kind of model; auto is stock where that can hold the student (default: auto)",
    )
    parser.add_argument("--dtype", help="type of the weights, such as bfloat16 (default: the checkpoint's)")
    parser.add_argument("--max-shard-size", type=_size, default="5GB", help="largest size of a file (default: 5GB)")
    parser.add_argument("--revision", help="branch, tag or commit of the checkpoint on the Hub")
    healing = parser.add_argument_group("healing")
    healing.add_argument("--heal", action="store_true", help="compensate, by fits on text, for the parts left out")
    healing.add_argument("--files", nargs="+", metavar="PATTERN", help="training text: files or patterns")
    healing.add_argument("--dataset", help="training text instead of files: a name on the Hub, or a folder")
    healing.add_argument("--dataset-config", help="configuration of the dataset")
    healing.add_argument("--split", help="split of the dataset (default: train)")
    healing.add_argument("--text-column", help="column that holds the text (default: text)")
    healing.add_argument("--block-size", type=int, help="tokens in a block (default: 1024 at most)")
    healing.add_argument("--calibration-tokens", type=int, help="most tokens to read (default: 32768)")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..extraction.extraction import extract_subnet
    from ..extraction.folder import check_new_folder

    logging.disable_progress_bar()
    subnet = read_subnet(options.subnet)
    _check_options(options)
    check_new_folder(options.output_dir)  # before any text is read
    folder = extract_subnet(
        options.checkpoint,
        subnet,
        options.output_dir,
        format=options.format,
        dtype=options.dtype,
        heal=options.heal,
        calibration_dataset=_blocks(options, subnet) if options.heal else None,
        max_shard_size=options.max_shard_size,
        revision=options.revision,
    )
    facts = facts_of(folder)
    return Outcome(facts, summary(facts))


def _size(text: str) -> int | str:
    """Parse a size of files for `extract_subnet`."""
    from ..extraction.folder import check_shard_size

    size = int(text) if text.isdecimal() else text
    try:
        check_shard_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return size


def read_subnet(name: str) -> "SubnetConfig":
    """Read a subnet from a `subnet.json`, or from a folder with one.

    Raises:
        SubnetError: if it cannot be read, or is not a subnet.
    """
    from ..errors import SubnetError
    from ..files.paths import expanded
    from ..files.text import read_json
    from ..subnet import SUBNET_FILE, SubnetConfig

    path = Path(expanded(name))
    file = path / SUBNET_FILE if path.is_dir() else path
    try:
        values = read_json(file)
    except OSError as error:
        raise SubnetError(
            f"cannot read the subnet {file}: {error.strerror}; give a {SUBNET_FILE}, or a folder with one"
        ) from error
    except ValueError as error:
        raise SubnetError(f"{file} is not JSON: {error}; give a {SUBNET_FILE}, or a folder with one") from error
    return SubnetConfig.from_dict(values)


def _check_options(options: argparse.Namespace) -> None:
    """Check that the options go together, and set the defaults of those that healing needs."""
    from ..errors import DataError

    given = [name for name in _HEALING_DEFAULTS if getattr(options, name) is not None]
    if given and not options.heal:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DataError(f"{flags} has no effect without --heal; add --heal, or leave it out")
    if options.heal and (options.files is None) == (options.dataset is None):
        raise DataError("--heal needs training text: give either --files or --dataset")
    for name, default in _HEALING_DEFAULTS.items():
        if name not in given:
            setattr(options, name, default)


def _blocks(options: argparse.Namespace, subnet: "SubnetConfig") -> "torch.Tensor":
    """Pack blocks of the text in tokens that the subnet keeps.

    Documents are drawn at random, and no more of them are tokenized than needed.
    """
    from itertools import islice

    import numpy as np
    import torch

    from ..data.documents import load_documents
    from ..data.packing import pack_documents
    from ..errors import DataError
    from ..extraction.checkpoint import Checkpoint
    from ..files.paths import expanded
    from ..files.sources import load_tokenizer
    from ..models.token_ids import origin_ids
    from ..vocabulary.of_model import tokenizer_of_subnet

    config = Checkpoint(options.checkpoint, revision=options.revision).config
    longest, vocab_size = config.max_position_embeddings, config.vocab_size
    size = min(1024, longest) if options.block_size is None else options.block_size
    if size > longest:
        raise DataError(
            f"--block-size {size} exceeds the {longest} positions of {options.checkpoint}; use smaller blocks"
        )
    whole, kept = load_tokenizer(expanded(options.checkpoint), revision=options.revision), subnet.vocab_size
    tokenizer = tokenizer_of_subnet(whole, kept, vocab_size)
    documents = load_documents(
        options.dataset, options.files, options.dataset_config, options.split, text_column=options.text_column
    )
    shuffled = documents.shuffle(seed=0).to_iterable_dataset()
    blocks = pack_documents(shuffled, tokenizer, size, text_column=options.text_column)
    rows = [block["input_ids"] for block in islice(blocks, max(2, options.calibration_tokens // size))]
    if len(rows) < 2:
        raise DataError(
            f"healing needs 2 blocks of {size} tokens or more, the text gives {len(rows)}; give more text or a smaller "
            "--block-size"
        )
    return origin_ids(torch.from_numpy(np.asarray(rows, dtype=np.int64)), kept)


def facts_of(folder: Path) -> dict[str, Any]:
    """Facts of the student in a folder, and of its healing."""
    from transformers import AutoConfig

    from ..cost.counts import num_parameters
    from ..files.text import read_json
    from ..healing.config import HEALING_FILE

    config = AutoConfig.from_pretrained(folder)
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    healing = {"healing": read_json(folder / HEALING_FILE)} if (folder / HEALING_FILE).is_file() else {}
    return {
        "output_dir": str(folder),
        "class": (config.architectures or ["student"])[0],
        "parameters": num_parameters(config),
        "bytes": sum(sizes),
        "files": len(sizes),
        **healing,
    }


def summary(facts: dict[str, Any]) -> str:
    """Describe a student, and the effect of healing."""
    files = f"{facts['files']} file{'s' * (facts['files'] != 1)}"
    lines = [
        f"A {facts['class']} of {facts['parameters']:,} parameters is in {facts['output_dir']}: "
        f"{facts['bytes'] / 1e6:,.1f} MB of weights in {files}"
    ]
    return "\n".join([*lines, *([_healing_summary(facts["healing"])] if "healing" in facts else [])])


def _healing_summary(report: dict[str, Any]) -> str:
    fitted, others = f"{report['tokens']:,} tokens", f"{report['held_out_tokens']:,} others"
    change = f"from {report['perplexity_before']:.3f} to {report['perplexity_after']:.3f}"
    if report["is_healed"]:
        return f"Healed on {fitted}: its perplexity on {others} fell {change}"
    return f"Left as sliced: healing on {fitted} would have taken its perplexity on {others} {change}"
