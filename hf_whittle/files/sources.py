"""Folders of files on disk or on the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat.sharding import not_partitioned
from ..compat.transformers import commit_of_file
from ..errors import CheckpointError, WhittleError
from .paths import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fetch_folder(source: str | Path, names: Sequence[str], optional: Sequence[str] = (), **hub: Any) -> Path:
    """Return a folder that holds these files: a local one, or one commit of a repository, downloaded if needed.

    Args:
        source (`str` or `Path`): a folder, or the name of a repository.
        names (`Sequence[str]`): the files.
        optional (`Sequence[str]`, *optional*): files that are downloaded too, if the repository has them.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` and `repo_type`, as in
            `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: if there is no such folder or repository, or it lacks one of the files.
    """
    folder = Path(expanded(source))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, HTTPError

        try:
            folder = Path(snapshot_download(str(source), allow_patterns=[*names, *optional], **hub))
        except (HTTPError, HFValidationError, OSError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{str(source)!r} is not a folder, and could not be read from the Hub: {reason}"
            ) from error
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{source} has no {name}")
    return folder


def read_config(source: str | Path) -> Any:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: if transformers cannot read it, or does not know such a model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load the checkpoint {str(source)!r}: {' '.join(str(error).split())}") from error


def commit_of(source: str | Path, **hub: Any) -> str | None:
    """Return the commit that a checkpoint was just loaded from, read off the Hub's cache.

    Args:
        source (`str` or `Path`): the checkpoint; a folder has no commit.
        hub: arguments with which it was loaded, as for `PreTrainedModel.from_pretrained`.
    """
    from transformers.utils import CONFIG_NAME, cached_file

    if Path(source).exists():
        return None
    where = {name: hub[name] for name in ("revision", "cache_dir", "subfolder") if name in hub}
    try:
        return commit_of_file(cached_file(source, CONFIG_NAME, local_files_only=True, **where))
    except (OSError, ValueError):  # not in the cache
        return None


def load_tokenizer(name: str, **hub: Any) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: if it has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = load_checkpoint(AutoTokenizer.from_pretrained, name, **hub)
        is_empty = not tokenizer("text").input_ids
    except ValueError as error:
        if isinstance(error, WhittleError):
            raise
        raise _without_tokenizer(name) from error
    if is_empty:
        raise _without_tokenizer(name)
    return tokenizer


def _without_tokenizer(name: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint {name!r} has no tokenizer: put the tokenizer's files beside it")


def load_checkpoint(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Call `load` with the name of a checkpoint; DeepSpeed does not partition a model that is loaded.

    Raises:
        CheckpointError: if the checkpoint cannot be read; it names the checkpoint.
    """
    try:
        with not_partitioned():
            return load(name, **kwargs)
    except OSError as error:
        raise CheckpointError(f"cannot load the checkpoint {name!r}: {' '.join(str(error).split())}") from error
