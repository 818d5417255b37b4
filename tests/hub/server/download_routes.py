"""Routes of downloads, and of the storage of large files."""

import re
from typing import TYPE_CHECKING, Any

from .protocol import Answer, Call, Refusal, Route
from .repos import Repo, sha256_of

if TYPE_CHECKING:
    from .hub import HubServer

_FILES = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+(?:/[^/]+)?)/resolve"


def resolve(hub: "HubServer", call: Call, repo: Repo, revision: str, path: str) -> Answer:
    commit = repo.find(revision)
    file = commit.tree.get(path)
    if not file:
        raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
    if not file.lfs:
        return part_of(call, hub.blobs[file.sha256], headers)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    return Answer(b"", 302, {**headers, "Location": hub.sign(repo, f"/blob/{file.sha256}")})


def part_of(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the requested range of it."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not asked:
        return Answer(content, headers=headers)
    size = len(content)
    start = int(asked[1]) if asked[1] else size - int(asked[2])
    end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
    if not 0 <= start < end:
        raise Refusal(416, "Range not satisfiable", Content_Range=f"bytes */{size}")
    return Answer(content[start:end], 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})


def owner(hub: "HubServer", call: Call) -> Repo:
    signed = f"{call.path}?signature={call.query.get('signature', [''])[0]}"
    if signed not in hub.signed:
        raise Refusal(403, "The signature does not match")
    return hub.signed[signed]


def upload(hub: "HubServer", call: Call, digest: str, size: str) -> Any:
    repo = owner(hub, call)
    if len(call.body) != int(size) or sha256_of(call.body) != digest:
        raise Refusal(400, "The content is not what was announced")
    hub.blobs[digest] = call.body
    repo.objects.add(digest)
    return {}


def download(hub: "HubServer", call: Call, digest: str) -> Answer:
    owner(hub, call)
    return part_of(call, hub.blobs[digest], {"ETag": f'"{digest}"'})


ROUTES: list[Route] = [  # method, path, rights it needs, function
    ("GET", f"{_FILES}/(?P<revision>[^/]+)/(?P<path>.+)", "contents", resolve),
]


STORAGE_ROUTES: list[Route] = [
    ("PUT", r"/upload/(?P<digest>[0-9a-f]{64})/(?P<size>\d+)", None, upload),
    ("GET", "/blob/(?P<digest>[0-9a-f]{64})", None, download),
]
