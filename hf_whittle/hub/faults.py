"""Faults of the Hub's client: which are temporary, and advice to the user."""

import re

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The client raises a RuntimeError of its own for files that it could not upload.
FAULTS = (HTTPError, ConnectionError, LocalTokenNotFoundError, LocalEntryNotFoundError, RuntimeError)
_AGAIN = "nothing was published; run the same again, files that are uploaded already are not sent twice"


def network_fault(error: BaseException) -> BaseException:
    """The fault of the network below an error of the client, if there is one, or else the error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    return cause or error


def status_of(error: BaseException | None) -> int | None:
    """The status that the Hub answered with; `None` if it did not answer."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    # hf_xet gives it in the text alone.
    found = re.search(r"\((\d{3}) [A-Z]", str(error)) if isinstance(error, ConnectionError) else None
    return int(found[1]) if found else None


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if status is None:
        return isinstance(error, HTTPError | ConnectionError | LocalEntryNotFoundError)
    return status in (408, 429) or status >= 500


def retry_after(error: BaseException) -> float | None:
    """The seconds that the Hub asked to wait."""
    value = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def in_brief(error: BaseException) -> str:
    """The status, or the kind of the error."""
    status = status_of(error)
    return type(error).__name__ if status is None else f"status {status}"


def explained(error: BaseException, name: str, text: str) -> str:
    """A fault in words, with advice.

    Args:
        error (`BaseException`): the fault.
        name (`str`): the repository, such as `"the model me/student"`.
        text (`str`): the text of the fault, without secrets.
    """
    status = status_of(error)
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
    if status is not None and status < 500:
        return _refusal(error, status, name, text)
    return f"the Hub failed at {name} ({in_brief(error)}); {_AGAIN}"


def _refusal(error: BaseException, status: int, name: str, text: str) -> str:
    if status == 403:
        return (
            f"the token has no right to write to {name}; use one with write access to it, or another name. Nothing was "
            "published"
        )
    if status == 412:
        return f"somebody committed to {name} meanwhile; {_AGAIN}"
    if status == 429:
        seconds = retry_after(error)
        return f"the Hub takes no more requests{f' for {seconds:.0f} s' if seconds else ''}; wait, then: {_AGAIN}"
    return f"the Hub refused {name} ({status}): {text}. Nothing was published"
