"""Save tokenizers of every kind with all of their files."""

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CHAT_TEMPLATE_DIR

from ..compat.transformers import find_file, template_names
from .paths import expanded
from .text import read_json, write_json

VOCABULARY_FILES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "spm_char.model",
    "source.spm", "target.spm", "tekken.json", "vocab.json", "merges.txt", "vocab.txt", "bpe.codes", "dict.txt",
    "emoji.json", "normalizer.json", "byte_maps.json", "entity_vocab.json", "word_shape.json",
    "word_pronunciation.json", "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "prophetnet.tokenizer",
)  # fmt: skip
"""Files from which transformers builds tokenizers, SentencePiece models among them."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", *VOCABULARY_FILES,
)  # fmt: skip
TEMPLATES = f"{CHAT_TEMPLATE_DIR}/*.jinja"


def names_of_templates(source: str, **hub: Any) -> list[str]:
    """Return the names of additional chat templates in a folder or a repository."""
    if Path(source).is_dir():
        return [f"{CHAT_TEMPLATE_DIR}/{path.name}" for path in sorted(Path(source).glob(TEMPLATES))]
    where = {name: hub.get(name) for name in ("revision", "cache_dir", "token")}
    listed = template_names(source, local_files_only=bool(hub.get("local_files_only")), **where)
    return [f"{CHAT_TEMPLATE_DIR}/{Path(name).stem}.jinja" for name in listed]


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer with all of its files, readable by `transformers` 4 and other programs."""
    tokenizer.save_pretrained(folder)
    complete_tokenizer(tokenizer, folder)


def complete_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Complete a folder written by `tokenizer.save_pretrained` to what `save_tokenizer` writes.

    `tokenizer` may be `None` or another processor, for which nothing is written.
    """
    make_tokenizer_portable(folder)
    keep_vocabulary_files(tokenizer, folder)


def make_tokenizer_portable(folder: str | Path) -> None:
    """Rewrite `tokenizer_config.json` so that `transformers` 4 reads it, too."""
    path = Path(folder) / TOKENIZER_CONFIG_FILE
    try:
        values = read_json(path) if path.is_file() else {}
    except ValueError:  # copied from a damaged checkpoint
        return
    if not isinstance(values, dict):
        return
    before = dict(values)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    if values != before:
        write_json(path, values)


def keep_vocabulary_files(tokenizer: Any, folder: str | Path) -> None:
    """Copy the vocabulary files that a tokenizer was loaded from and that `save_pretrained` does not write.

    Other programs need them: llama.cpp, for one, reads SentencePiece models. Nothing is copied if the tokenizer lacks
    a token of the folder it was loaded from, or has it under another id.
    """
    source = expanded(getattr(tokenizer, "name_or_path", "") or "")
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not source or Path(source) == Path(folder):
        return
    missing = [name for name in VOCABULARY_FILES if not (Path(folder) / name).exists()]
    found = {name: path for name in missing if (path := _local_file(source, name)) is not None}
    if found and _has_the_tokens_of(tokenizer, source):
        for name, path in found.items():
            shutil.copyfile(path, Path(folder) / name)


def _local_file(source: str, name: str) -> str | None:
    """Return the path of a checkpoint's file, if it is on this machine."""
    if Path(source).is_dir():
        return str(Path(source) / name) if (Path(source) / name).is_file() else None
    try:
        return find_file(source, name, local_files_only=True)
    except (OSError, ValueError):
        return None


def _has_the_tokens_of(tokenizer: PreTrainedTokenizerBase, source: str) -> bool:
    try:
        before = AutoTokenizer.from_pretrained(source, local_files_only=True).get_vocab()
    except (OSError, ValueError, ImportError):
        return False
    return before.items() <= tokenizer.get_vocab().items()
