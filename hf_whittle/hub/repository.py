"""A repository on the Hub: files appear there in one commit, or not at all."""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .. import __version__
from ..compat import HUB_LOGGERS, commit_info
from ..errors import HubError

logger = logging.get_logger(__name__)

T = TypeVar("T")
Content = Path | bytes
_ATTEMPTS = 5
_LONGEST_WAIT = 60.0
# What could not be downloaded or uploaded is an error of the client's own.
_FAULTS = (HTTPError, ConnectionError, LocalTokenNotFoundError, LocalEntryNotFoundError, RuntimeError)
_AGAIN = "nothing was published; run the same again, files that are uploaded already are not sent twice"


def check_repo_id(repo_id: str) -> None:
    """Raise `HubError` if the Hub takes no repository of that name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {error}; give one such as me/my-student") from error


class Repository:
    """A repository that files are published in.

    Args:
        repo_id (`str`): its name; without a namespace, one of the token's owner.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        token (`str` or `bool`, *optional*): as for `HfApi`.

    Raises:
        HubError: from every method, saying what the Hub answered and what to do.
    """

    def __init__(self, repo_id: str, *, repo_type: str = "model", token: str | bool | None = None):
        self.id, self.type = repo_id, repo_type
        self._names: dict[str, list[str]] = {}
        self._secret = token if isinstance(token, str) else get_token()
        self._api = HfApi(token=token, library_name="hf_whittle", library_version=__version__)

    def qualify(self) -> None:
        """Put the token's owner before a name without a namespace."""
        if "/" not in self.id:
            self.id = f"{self._patiently(self._api.whoami)['name']}/{self.id}"

    def exists(self) -> bool:
        """Whether there is such a repository that the token may see."""
        try:
            self._patiently(lambda: self._api.repo_info(self.id, repo_type=self.type))
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and _status(error.__cause__) != 401:
                return False
            raise
        return True

    def prepare(self, private: bool | None = None, revision: str | None = None) -> None:
        """Make the repository and the branch, where there are none."""
        if not self.exists():
            self._patiently(lambda: self._api.create_repo(self.id, repo_type=self.type, private=private, exist_ok=True))
        elif private:
            logger.warning(f"{self.id} is there already, and stays as visible as it is")
        if revision is not None and not revision.startswith("refs/"):
            self._patiently(
                lambda: self._api.create_branch(self.id, branch=revision, repo_type=self.type, exist_ok=True)
            )

    def head(self, revision: str | None = None) -> str:
        """The last commit."""
        info = self._patiently(lambda: self._api.repo_info(self.id, repo_type=self.type, revision=revision))
        return str(info.sha)

    def names(self, revision: str) -> list[str]:
        """Names of all files of a commit, which never change."""
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

        Files that the Hub has already are not sent. If the answer to the commit is lost, the repository is looked at,
        so that no second one is made.

        Args:
            files (`Mapping[str, Path | bytes]`): what is published, by name.
            parent (`str`): the commit that this one follows; another one in between is an error.
            message (`str`): of the commit.
            owned (`Collection[str]`): patterns of names; what is there by such a name, in no folder, and not in
                `files` is removed.
            description (`str`, *optional*): of the commit.
            revision (`str`, *optional*): the branch, `main` by default.
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
        """Work that the Hub may answer later: tried again after a while where its fault will pass.

        Args:
            work (`Callable`): what to do.
            landed (`Callable`, *optional*): finds what it did, where the answer was lost.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with self._discreetly():
                    return work()
            except _FAULTS as error:
                cause = _http_error(error)
                is_last = attempt == _ATTEMPTS - 1
                if isinstance(error, OfflineModeIsEnabled) or not _will_pass(cause) or is_last:
                    raise HubError(self._explain(cause)) from self._fit_to_show(cause)
                wait = min(_retry_after(cause) or 2.0**attempt, _LONGEST_WAIT)
                logger.warning(f"the Hub did not take it ({_brief(cause)}); trying again in {wait:.0f} s")
                time.sleep(wait)
            except HFValidationError as error:
                raise HubError(f"{self.id!r} is no name of a repository: {error}") from error
            except ValueError as error:  # which the client makes of what the Hub says of a card
                reason = self._without_secrets(str(error))
                raise HubError(f"the Hub refused the card of {self.id}: {reason}. Nothing was published") from None
            found = None if landed is None else self._look(landed)
            if found is not None:
                return found
        raise AssertionError("the last attempt returns or raises")

    def _look(self, landed: Callable[[], T | None]) -> T | None:
        """What became of work whose answer was lost: without knowing that, it is not done a second time."""
        try:
            return self._patiently(landed)
        except HubError as error:
            raise HubError(
                f"the Hub did not answer when the {self.type} {self.id} was committed to, and could not be asked since "
                "whether it was; look there, and run the same again if nothing is published"
            ) from error.__cause__

    @contextlib.contextmanager
    def _discreetly(self) -> Iterator[None]:
        """Keep secrets out of what the client logs."""

        def clean(record: LogRecord) -> bool:
            record.msg, record.args = self._without_secrets(record.getMessage()), ()
            return True

        loggers = [getLogger(name) for name in HUB_LOGGERS]
        for each in loggers:
            each.addFilter(clean)
        try:
            yield
        finally:
            for each in loggers:
                each.removeFilter(clean)

    def _fit_to_show(self, error: BaseException) -> BaseException:
        """An error as the cause of another one, without secrets in its text and in what it came of."""
        error.args = tuple(self._without_secrets(each) if isinstance(each, str) else each for each in error.args)
        error.__cause__ = error.__context__ = None
        return error

    def _explain(self, error: BaseException) -> str:
        name, status = f"the {self.type} {self.id}", _status(error)
        if isinstance(error, OfflineModeIsEnabled):
            return "the Hub cannot be reached in offline mode; unset HF_HUB_OFFLINE"
        if isinstance(error, LocalTokenNotFoundError):
            return "there is no token to write to the Hub with; run `hf auth login`, or set HF_TOKEN"
        if isinstance(error, GatedRepoError):
            return f"{name} is gated and the token's owner has no access; ask for it on the repository's page"
        if isinstance(error, RevisionNotFoundError):
            return f"{name} has no such branch or commit; {_AGAIN} with another revision"
        if status == 401:
            return f"the Hub does not know the token, or {name} is private; run `hf auth login`, or set HF_TOKEN"
        if isinstance(error, RepositoryNotFoundError):
            return f"{name} does not exist, or it is private and the token's owner has no access"
        if status == 403:
            return (
                f"the token has no right to write to {name}; use one with write access to it, or another name. "
                "Nothing was published"
            )
        if status == 412:
            return f"somebody committed to {name} meanwhile; {_AGAIN}"
        if status == 429:
            seconds = _retry_after(error)
            return f"the Hub takes no more requests{f' for {seconds:.0f} s' if seconds else ''}; wait, then: {_AGAIN}"
        if status is not None and status < 500:
            return f"the Hub refused {name} ({status}): {self._without_secrets(str(error))}. Nothing was published"
        return f"the Hub failed at {name} ({_brief(error)}); {_AGAIN}"

    def _without_secrets(self, text: str) -> str:
        text = " ".join(text.split())
        text = text.replace(self._secret, "...") if self._secret else text
        return re.sub(r"\?\S+|\bhf_\w{16,}", "", text)


def read_content(content: Content) -> bytes:
    """What is in a file that is published."""
    return content if isinstance(content, bytes) else content.read_bytes()


def _digests(content: Content) -> set[str]:
    """How the Hub may name a content: as a large file, and as git does."""
    if isinstance(content, bytes):
        size, chunks = len(content), iter([content])
    else:
        size, chunks = content.stat().st_size, _chunks(content)
    large, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    for chunk in chunks:
        large.update(chunk)
        git.update(chunk)
    return {large.hexdigest(), git.hexdigest()}


def _chunks(path: Path) -> Any:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")


def _http_error(error: BaseException) -> BaseException:
    """The fault below an error of the client, where it is one of the network."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    return cause or error


def _status(error: BaseException | None) -> int | None:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    said = re.search(r"\((\d{3}) [A-Z]", str(error)) if isinstance(error, ConnectionError) else None  # of hf_xet
    return int(said[1]) if said else None


def _will_pass(error: BaseException) -> bool:
    status = _status(error)
    if status is None:  # no answer at all
        return isinstance(error, HTTPError | ConnectionError | LocalEntryNotFoundError)
    return status in (408, 429) or status >= 500


def _retry_after(error: BaseException) -> float | None:
    value = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def _brief(error: BaseException) -> str:
    status = _status(error)
    return type(error).__name__ if status is None else f"status {status}"
