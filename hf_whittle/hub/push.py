"""Publish students on the Hub."""

import json
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, ModelCard
from transformers import CONFIG_MAPPING
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from ..architectures.dimensions import LAYERS
from ..architectures.registry import get_architecture, is_known
from ..errors import HubError
from ..files.disk import disk_errors
from ..record.files import CARD_FILE
from ..subnet import SUBNET_FILE
from .card import is_as_rendered
from .publication import WEIGHTS, Publication, publication_of_folder
from .repository import Content, Repository, read_content
from .saving import save_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..search.result import SearchResult
    from .card import SubnetModelCardData

logger = logging.get_logger(__name__)

_SETTINGS = (
    "model_type", "vocab_size", "per_layer_config", "tie_word_embeddings", "rotary_pairs", "base_model_name_or_path",
    "peft_type",
)  # fmt: skip
"""Settings that differ between architectures, beside the sizes of each."""


def push_subnet_to_hub(
    student: "PreTrainedModel | str | Path",
    repo_id: str,
    *,
    search_result: "SearchResult | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    card_data: "SubnetModelCardData | None" = None,
    lm_eval: str | Path | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
) -> CommitInfo:
    """Publish a student with its model card, in one commit.

    Weights (safetensors), configurations, tokenizer, `subnet.json`, the archive and pictures of the search, the recipe
    and `README.md` appear together or not at all. Only a student that no stock model can hold is published with
    modeling files. A second call after a fault uploads only what is missing; without changes, it makes no new commit.

    Args:
        student (`PreTrainedModel`, `str` or `Path`): a student, adapters of one, or the folder of either, such as
            `hf-whittle run` writes.
        repo_id (`str`): repository to publish in; made if there is none.
        search_result (`SearchResult`, *optional*): the search that found a student in memory.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the tokenizer of a student in memory.
        card_data (`SubnetModelCardData`, *optional*): metadata of the card that take precedence, such as
            a license. By default the license is that of the checkpoint that the student was extracted from.
        lm_eval (`str` or `Path`, *optional*): results that `lm_eval --output_path` wrote, for the card.
        private (`bool`, *optional*): whether a repository that is made is private; the owner's setting by default.
        token (`str` or `bool`, *optional*): token; by default that of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): branch, made if there is none; `main` by default.
        create_pr (`bool`, *optional*, defaults to `False`): whether to open a pull request instead, on `main`.
        commit_message (`str`, *optional*): commit message.
        commit_description (`str`, *optional*): commit description.
        overwrite (`bool`, *optional*, defaults to `False`): whether to publish over a model of another architecture,
            and over a card that was written by hand.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): most bytes of a file of weights, of a student
            in memory.

    Returns:
        `CommitInfo`: the commit, with `pr_url` for a pull request.

    Raises:
        HubError: if the Hub refuses or cannot be reached, or the repository holds another architecture. Nothing is
            published then.
        CheckpointError: if the folder holds no whole student, or the adapters' student is not on the Hub.
        VocabularyError: if the tokenizer has more tokens than the student.
        ValueError: if arguments contradict each other.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"a pull request is made on main, got revision={revision!r}; leave out create_pr or revision")
    known: dict[str, Any] = {"card_data": card_data, "lm_eval": lm_eval, "token": token}
    repository = Repository(repo_id, token=token)
    repository.qualify()
    options: dict[str, Any] = {
        "revision": revision,
        "create_pr": create_pr,
        "private": private,
        "overwrite": overwrite,
        "message": commit_message,
        "description": commit_description,
    }
    if isinstance(student, str | Path):
        if search_result is not None or tokenizer is not None:
            raise ValueError("search_result and tokenizer go with a student in memory; a folder has its own files")
        return publish(repository, publication_of_folder(student, repository.id, **known), **options)
    repository.exists()  # finds a wrong token or an unreachable Hub before anything is written
    with disk_errors("a temporary folder"), tempfile.TemporaryDirectory() as folder:
        save_student(student, folder, search_result=search_result, tokenizer=tokenizer, max_shard_size=max_shard_size)
        return publish(repository, publication_of_folder(folder, repository.id, **known), **options)


def publish(
    repository: Repository,
    publication: Publication,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    private: bool | None = None,
    overwrite: bool = False,
    message: str | None = None,
    description: str | None = None,
) -> CommitInfo:
    """Publish files in one commit; arguments as for `push_subnet_to_hub`."""
    repository.prepare(private, revision)
    head, files = repository.head(revision), publication.files
    if not overwrite:
        check_architecture(repository, head, publication.config)
        files = without_card_of_others(repository, head, files)
    return repository.commit(
        files,
        parent=head,
        message=message or "Upload a student of hf_whittle",
        description=description,
        owned=publication.owned(is_another=_is_another(repository, head, publication), overwrite=overwrite),
        revision=revision,
        create_pr=create_pr,
    )


def _is_another(repository: Repository, revision: str, publication: Publication) -> bool:
    """Whether a repository holds another subnet than is published."""
    if SUBNET_FILE not in publication.files or SUBNET_FILE not in repository.names(revision):
        return False
    return repository.read(SUBNET_FILE, revision) != publication.read(SUBNET_FILE)


def without_card_of_others(repository: Repository, revision: str, files: dict[str, Content]) -> dict[str, Content]:
    """Files to publish, without the card if somebody wrote or changed the one in the repository."""
    if CARD_FILE not in repository.names(revision):
        return files
    there = repository.read(CARD_FILE, revision).decode(errors="replace")
    if is_as_rendered(there) or not ModelCard(there, ignore_metadata_errors=True).text.strip():
        return files
    if there == read_content(files[CARD_FILE]).decode():
        return files
    logger.warning(f"the card of {repository.id} was written by hand and stays; overwrite=True replaces it")
    return {name: content for name, content in files.items() if name != CARD_FILE}


def check_architecture(repository: Repository, revision: str, config: dict[str, Any]) -> None:
    """Raise `HubError` if a repository holds a model of another architecture than that of a configuration."""
    names = {name for name in repository.names(revision) if "/" not in name}  # folders stay as they are
    there: dict[str, Any] = {}
    for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        if name in names:
            try:
                there = json.loads(repository.read(name, revision))
            except ValueError:
                there = {"model_type": "unreadable"}
            break
    else:
        if not any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS):
            return
        there = {"model_type": "unknown"}
    settings = [*_SETTINGS, *settings_of_sizes(config)]
    ours, theirs = ({name: each.get(name) for name in settings} for each in (config, there))
    differing = [name for name in settings if ours[name] != theirs[name]]
    if differing:
        name = differing[0]
        raise HubError(
            f"{repository.id} holds a model of another architecture ({name} {_short(theirs[name])}, the student has "
            f"{_short(ours[name])}). Nothing was published; choose another name, or publish over it with "
            "overwrite=True (--overwrite, hub_overwrite)"
        )


def settings_of_sizes(config: dict[str, Any]) -> list[str]:
    """Names of the settings that state the sizes of a model in its `config.json`."""
    model_type = config.get("model_type")
    if model_type is None or not is_known(model_type):
        return []
    architecture = get_architecture(model_type)
    names = (LAYERS.name, *architecture.write_sizes(dict.fromkeys(architecture.dimensions, 1)))
    written: dict[str, str] = CONFIG_MAPPING[model_type].attribute_map
    return [written.get(name, name) for name in names]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]}..."
