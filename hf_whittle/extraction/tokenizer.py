"""The tokenizer of a student from a checkpoint: the checkpoint's own, or one with a part of its tokens."""

import shutil
import tempfile
from pathlib import Path

from ..files.sources import load_tokenizer
from ..files.tokenizer import make_tokenizer_portable, save_tokenizer
from ..kept import is_part
from ..subnet import SubnetConfig
from ..vocabulary import prune_tokenizer
from .checkpoint import Checkpoint


def write_tokenizer(checkpoint: Checkpoint, subnet: SubnetConfig, folder: Path) -> None:
    """Write a student's tokenizer, if the checkpoint has one, as its files are or with the tokens that are kept.

    Raises:
        VocabularyError: if the kept tokens do not make a tokenizer, as `prune_tokenizer` says.
    """
    files, kept = checkpoint.tokenizer_files, subnet.vocab_size
    if not is_part(kept, checkpoint.config.vocab_size):
        _copy(files, folder)
        make_tokenizer_portable(folder)
    elif files:
        with tempfile.TemporaryDirectory() as whole:
            checkpoint.config.save_pretrained(whole)
            _copy(files, Path(whole))
            save_tokenizer(prune_tokenizer(load_tokenizer(whole), kept), folder)


def _copy(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
