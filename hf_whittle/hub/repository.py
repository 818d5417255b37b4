"""A repository on the Hub: files appear there in one commit, or not at all."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .. import __version__
from ..compat.others import commit_info
from ..errors import HubError
from .faults import FAULTS, explained, in_brief, is_temporary, network_fault, retry_after, status_of
from .secrets import Secrets

logger = logging.get_logger(__name__)

T = TypeVar("T")
Content = Path | bytes
"""A file to publish: where it is on disk, or its bytes."""
_ATTEMPTS = 5
_LONGEST_WAIT = 60.0


def check_repo_id(repo_id: str) -> None:
    """Raise `HubError` if the Hub has no repositories of such a name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {error}; give one such as me/my-student") from error


class Repository:
    """A repository on the Hub.

    Args:
        repo_id (`str`): its name; without a namespace, one of the token's owner.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        token (`str` or `bool`, *optional*): as for `HfApi`.

    Raises:
        HubError: from every method, with the Hub's answer and advice.
    """

    def __init__(self, repo_id: str, *, repo_type: str = "model", token: str | bool | None = None):
        self.id, self.type = repo_id, repo_type
        self._names: dict[str, list[str]] = {}
        self._secrets = Secrets(token)
        self._api = HfApi(token=token, library_name="hf_whittle", library_version=__version__)

    def qualify(self) -> None:
        """Put the namespace of the token's owner before a name that has none."""
        if "/" not in self.id:
            self.id = f"{self._patiently(self._api.whoami)['name']}/{self.id}"

    def exists(self) -> bool:
        """Whether there is such a repository and the token may read it."""
        try:
            self._patiently(lambda: self._api.repo_info(self.id, repo_type=self.type))
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and status_of(error.__cause__) != 401:
                return False
            raise
        return True

    def prepare(self, private: bool | None = None, revision: str | None = None) -> None:
        """Make the repository and the branch if there are none."""
        if not self.exists():
            self._patiently(lambda: self._api.create_repo(self.id, repo_type=self.type, private=private, exist_ok=True))
        elif private:
            logger.warning(f"{self.id} exists already; its visibility stays as it is")
        if revision is not None and not revision.startswith("refs/"):
            self._patiently(
                lambda: self._api.create_branch(self.id, branch=revision, repo_type=self.type, exist_ok=True)
            )

    def head(self, revision: str | None = None) -> str:
        """The last commit."""
        info = self._patiently(lambda: self._api.repo_info(self.id, repo_type=self.type, revision=revision))
        return str(info.sha)

    def names(self, revision: str) -> list[str]:
        """Names of all files of a commit."""
        if revision not in self._names:
            self._names[revision] = self._patiently(
                lambda: self._api.list_repo_files(self.id, repo_type=self.type, revision=revision)
            )
        return self._names[revision]

    def read(self, name: str, revision: str) -> bytes:
        """The content of a file."""
        path = self._patiently(lambda: self._api.hf_hub_download(self.id, name, repo_type=self.type, revision=revision))
        return Path(path).read_bytes()

    def commit(
        self,
        files: Mapping[str, Content],
        *,
        parent: str,
        message: str,
        owned: Collection[str] = (),
        description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publish files in one commit.

        Files that the Hub has already are not sent. If the answer to the commit is lost, the repository is searched for
        it, so that it is not made twice.

        Args:
            files (`Mapping[str, Path | bytes]`): the files by name.
            parent (`str`): the commit before this one; another one in between is an error.
            message (`str`): commit message.
            owned (`Collection[str]`): patterns of names; files of the repository with such a name, in no folder, that
                are not in `files` are removed.
            description (`str`, *optional*): commit description.
            revision (`str`, *optional*): branch, `main` by default.
            create_pr (`bool`, *optional*, defaults to `False`): whether to open a pull request instead.
        """
        stale = [
            name
            for name in self.names(parent)
            if name not in files and "/" not in name and any(fnmatch(name, pattern) for pattern in owned)
        ]
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]

        def send() -> CommitInfo:
            return self._api.create_commit(
                self.id,
                operations,
                commit_message=message,
                commit_description=description,
                repo_type=self.type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent,
            )

        def landed() -> CommitInfo | None:
            return self._find(files, stale, parent, message, revision, create_pr)

        return self._patiently(send, landed)

    def _find(
        self,
        files: Mapping[str, Content],
        stale: list[str],
        parent: str,
        message: str,
        revision: str | None,
        create_pr: bool,
    ) -> CommitInfo | None:
        """The commit that published these files after `parent`, if there is one."""
        revisions: list[tuple[str | None, str]] = [(revision, "")]
        if create_pr:
            requests = self._api.get_repo_discussions(self.id, repo_type=self.type, discussion_type="pull_request")
            revisions = [(f"refs/pr/{each.num}", each.url) for each in requests if each.title == message]
        for name, url in revisions:
            head = self._api.repo_info(self.id, repo_type=self.type, revision=name).sha
            if head == parent or not self._holds(files, stale, str(head)):
                continue
            prefix = f"{self._api.endpoint}/{'' if self.type == 'model' else 'datasets/'}{self.id}"
            return commit_info(
                self._api.endpoint,
                commit_url=f"{prefix}/commit/{head}",
                commit_message=message,
                commit_description="",
                oid=str(head),
                pr_url=url or None,
            )
        return None

    def _holds(self, files: Mapping[str, Content], stale: list[str], revision: str) -> bool:
        names = [*files, *stale]
        infos: Any = self._api.get_paths_info(self.id, names, repo_type=self.type, revision=revision)
        there = {info.path: info.lfs.sha256 if info.lfs else info.blob_id for info in infos}
        return set(there) == set(files) and all(there[name] in _digests(content) for name, content in files.items())

    def _patiently(self, work: Callable[[], T], landed: Callable[[], T | None] | None = None) -> T:
        """Do some work with the Hub, again after a while if a fault is temporary.

        Args:
            work (`Callable`): the work.
            landed (`Callable`, *optional*): finds the outcome of the work if the answer was lost.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with self._secrets.kept_out_of_logs():
                    return work()
            except FAULTS as error:
                fault = network_fault(error)
                if not is_temporary(fault) or attempt == _ATTEMPTS - 1:
                    raise self._error(fault) from self._secrets.removed_from(fault)
                wait = min(retry_after(fault) or 2.0**attempt, _LONGEST_WAIT)
                logger.warning(f"the Hub did not accept a request ({in_brief(fault)}); trying again in {wait:.0f} s")
                time.sleep(wait)
            except HFValidationError as error:
                raise HubError(f"{self.id!r} is no name of a repository: {error}") from error
            except ValueError as error:  # the client's, if the Hub finds a fault in a card
                reason = self._secrets.removed(str(error))
                raise HubError(f"the Hub refused the card of {self.id}: {reason}. Nothing was published") from None
            found = None if landed is None else self._look(landed)
            if found is not None:
                return found
        raise AssertionError("the last attempt returns or raises")

    def _error(self, fault: BaseException) -> HubError:
        return HubError(explained(fault, f"the {self.type} {self.id}", self._secrets.removed(str(fault))))

    def _look(self, landed: Callable[[], T | None]) -> T | None:
        """Find the outcome of work whose answer was lost, or raise, so that it is not done a second time."""
        try:
            return self._patiently(landed)
        except HubError as error:
            raise HubError(
                f"the Hub did not answer a commit to the {self.type} {self.id}, and has not answered since whether it "
                "was made; look there, and run the same again if nothing is published"
            ) from error.__cause__


def read_content(content: Content) -> bytes:
    """The bytes of a file to publish."""
    return content if isinstance(content, bytes) else content.read_bytes()


def _digests(content: Content) -> set[str]:
    """The digests by which the Hub may name a content: that of a large file, and that of git."""
    if isinstance(content, bytes):
        size, chunks = len(content), iter([content])
    else:
        size, chunks = content.stat().st_size, _chunks(content)
    large, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for chunk in chunks:
        large.update(chunk)
        git.update(chunk)
    return {large.hexdigest(), git.hexdigest()}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")
