"""Publish the archive of a search as a dataset."""

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from ..files.disk import disk_errors
from ..record.files import CARD_FILE
from ..search.facts import search_facts
from ..search.result import CANDIDATES_FILE, SEARCH_FILE, SearchResult
from .card import sealed
from .publication import without_archives
from .push import without_card_of_others
from .repository import Content, Repository
from .wording import as_code, as_number, as_title

TEMPLATE = "dataset_card.md.jinja"


def push_search_archive(
    search_result: SearchResult | str | Path,
    repo_id: str,
    *,
    card_data: DatasetCardData | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    overwrite: bool = False,
) -> CommitInfo:
    """Publish every evaluation of a search as a dataset with a card, in one commit.

    `datasets.load_dataset(repo_id)` reads the evaluations, a row each, and
    `SearchResult.from_pretrained(repo_id, repo_type="dataset")` the search, so that anyone can extract another of its
    subnets.

    Args:
        search_result (`SearchResult`, `str` or `Path`): the search, or the folder it was saved in.
        repo_id (`str`): dataset to publish in; made if there is none.
        card_data (`DatasetCardData`, *optional*): metadata of the card, such as a license.
        private (`bool`, *optional*): whether a dataset that is made is private; the owner's setting by default.
        token (`str` or `bool`, *optional*): token; by default that of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): branch, made if there is none; `main` by default.
        commit_message (`str`, *optional*): commit message.
        overwrite (`bool`, *optional*, defaults to `False`): whether to replace a card that was written by hand.

    Raises:
        OutputError: if the folder holds no search.
        WhittleError: if the search has found no subnet yet.
        HubError: if the Hub refuses or cannot be reached. Nothing is published then.
    """
    result = search_result if isinstance(search_result, SearchResult) else SearchResult.load(search_result)
    repository = Repository(repo_id, repo_type="dataset", token=token)
    repository.qualify()
    with disk_errors("a temporary folder"), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SearchResult(without_archives(result.settings), result.evaluations).save(folder)
        pictures = result.plot(folder)
        (folder / CARD_FILE).write_text(archive_card(result, repository.id, card_data), encoding="utf-8")
        names = (CARD_FILE, SEARCH_FILE, CANDIDATES_FILE, *(path.name for path in pictures))
        files: dict[str, Content] = {file: folder / file for file in names}
        repository.prepare(private, revision)
        head = repository.head(revision)
        return repository.commit(
            files if overwrite else without_card_of_others(repository, head, files),
            parent=head,
            message=commit_message or "Upload the archive of a search of hf_whittle",
            revision=revision,
        )


def archive_card(result: SearchResult, repo_id: str, card_data: DatasetCardData | None = None) -> str:
    """The dataset card of a search."""
    data: Any = DatasetCardData(**({} if card_data is None else vars(card_data)))
    data.tags = list(dict.fromkeys([*(data.get("tags") or ()), "hf_whittle", "neural-architecture-search"]))
    data["configs"] = [{"config_name": "default", "data_files": CANDIDATES_FILE}]
    with resources.as_file(resources.files(__package__).joinpath(TEMPLATE)) as path:
        card = DatasetCard.from_template(
            data,
            template_path=str(path),
            title=as_title(repo_id.split("/")[-1]),
            name=json.dumps(repo_id),
            search=search_facts(result),
            number=as_number,
            code=as_code,
        )
    return sealed(str(card))
