"""Routes of uploads: announcements, storage, commits."""

import base64
import json
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .metadata import metadata_errors
from .protocol import Answer, Breach, Call, Refusal, Route, check
from .repo_routes import API, open_thread
from .repos import File, Repo, git_oid, is_lfs, lfs_pointer
from .xet import read_xet

if TYPE_CHECKING:
    from .hub import HubServer

MAX_FILES = 256
LFS_MEDIA = "application/vnd.git-lfs+json"
_LFS = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects"


def preupload(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Any:
    tree = repo.find(revision).tree
    files = call.json()["files"]
    check(0 < len(files) <= MAX_FILES, f"{len(files)} files at once")
    answers = []
    for file in files:
        sample = base64.b64decode(file["sample"], validate=True)
        check(len(sample) == min(512, file["size"]), "a sample that is not the first 512 bytes")
        mode = "lfs" if is_lfs(file["path"], sample, file["size"]) else "regular"
        oid = {"oid": tree[file["path"]].etag} if file["path"] in tree else {}
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
    return {"files": answers}


def lfs_batch(hub: "HubServer", call: Call, repo: Repo) -> Answer:
    body = call.json()
    hub.check_write(call.account, repo, body.get("ref", {}).get("name", ""), proposes="ref" not in body)
    media = {call.headers.get("Accept"), call.headers.get("Content-Type")}
    check(media == {LFS_MEDIA}, "a batch of another media type")
    check((body["operation"], body["hash_algo"]) == ("upload", "sha256"), "not an upload by sha256")
    check("basic" in body["transfers"] and len(body["objects"]) <= MAX_FILES, "not a batch of basic transfers")
    objects = []
    for one in body["objects"]:
        oid, size = one["oid"], one["size"]
        check(re.fullmatch("[0-9a-f]{64}", oid) and size > 0, "not an object")
        verify = {"href": f"{hub.url}{repo.path}.git/info/lfs/objects/verify"}
        actions = {"upload": {"href": hub.sign(repo, f"/upload/{oid}/{size}")}, "verify": verify}
        objects.append({"oid": oid, "size": size, **({} if oid in repo.objects else {"actions": actions})})
    return Answer({"transfer": "basic", "objects": objects}, headers={"Content-Type": LFS_MEDIA})


def lfs_verify(hub: "HubServer", call: Call, repo: Repo) -> Any:
    body = call.json()
    hub.check_write(call.account, repo, proposes=True)
    if body["oid"] not in repo.objects or len(hub.blobs[body["oid"]]) != body["size"]:
        raise Refusal(404, "Object not found")
    return {}


def xet_token(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Answer:
    """A token for storage in a folder of its own: Xet locks the folders it has open."""
    if "create_pr" not in call.query:
        repo.find(revision)
    folder = Path(tempfile.mkdtemp(dir=hub.folder))
    repo.xet_folders.append(folder)
    token = {"casUrl": f"local://{folder}", "accessToken": secrets.token_hex(8), "exp": int(time.time()) + 3600}
    names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
    return Answer(token, headers=dict(zip(names, map(str, token.values()), strict=True)))


def commit(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Any:
    check(call.headers.get("Content-Type") == "application/x-ndjson", "a commit that is not ndjson")
    header, *operations = map(json.loads, call.body.splitlines())
    check(header["key"] == "header" and header["value"]["summary"], "a commit without a summary")
    proposes = "create_pr" in call.query
    parent, base, ref = header["value"].get("parentCommit"), repo.find(revision), repo.ref(revision)
    if proposes:
        base, ref = repo.find(parent or revision), f"refs/pr/{len(repo.discussions) + 1}"
    elif not ref or ref.startswith("refs/tags/"):
        raise Refusal(400, "A commit can only be made on a branch")
    elif parent and not base.oid.startswith(parent):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(base.tree)
    for operation in operations:
        apply(hub, repo, tree, operation["key"], operation["value"])
    folders = {str(parent) for path in tree for parent in Path(path).parents}
    check(not folders & tree.keys(), "a file and a folder of the same name")
    card = tree.get("README.md")
    if card and (errors := metadata_errors(hub.blobs[card.sha256].decode())):
        raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(errors))
    summary, user = header["value"]["summary"], call.account.user
    repo.refs.setdefault(ref, base.oid)
    commit = hub.write(repo, ref, tree, summary, header["value"].get("description", ""), user)
    answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{hub.url}{repo.path}/commit/{commit.oid}"}
    if proposes:
        data = {"subject": summary, "oid": commit.oid}
        num = open_thread(repo, user, summary, True, "commit", data)["num"]
        answer["pullRequestUrl"] = f"{hub.url}{repo.path}/discussions/{num}"
    return answer


def apply(hub: "HubServer", repo: Repo, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """Do one operation of a commit to its tree."""
    path = value["path"]
    parts = path.rstrip("/").split("/")
    check(not {"", ".", "..", ".git"}.intersection(parts), "a path that is not one of a file in a repository")
    if key == "file":
        check(value["encoding"] == "base64", "an encoding other than base64")
        content = base64.b64decode(value["content"], validate=True)
        check(not is_lfs(path, content, len(content)), "a large file in the body of a commit")
        tree[path] = hub.store(repo, path, content)
    elif key == "lfsFile":
        check(value["algo"] == "sha256", "an algorithm other than sha256")
        content = large(hub, repo, value["oid"], value.get("size", 0))
        check(content is not None, "a large file that was not uploaded")
        check(len(content) == value.get("size", len(content)), "a large file of another size")
        tree[path] = File(value["oid"], len(content), git_oid(lfs_pointer(value["oid"], len(content))), True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = {path} if key == "deletedFile" else {one for one in tree if one.startswith(f"{path.rstrip('/')}/")}
        if not gone & tree.keys():
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        for one in gone:
            del tree[one]
    else:
        raise Breach(f"an unknown operation {key}")


def large(hub: "HubServer", repo: Repo, digest: str, size: int) -> bytes | None:
    """A large file that was sent to a repository, by LFS or Xet."""
    if digest not in repo.objects:
        found = (read_xet(folder, digest, size) for folder in repo.xet_folders)
        content = next((one for one in found if one is not None), None)
        if content is None:
            return None
        hub.blobs[digest] = content
        repo.objects.add(digest)
    return hub.blobs[digest]


ROUTES: list[Route] = [  # method, path, rights it needs, function
    ("POST", f"{API}/preupload/(?P<revision>[^/]+)", "propose", preupload),
    ("POST", f"{API}/commit/(?P<revision>[^/]+)", "propose", commit),
    ("GET", f"{API}/xet-write-token/(?P<revision>[^/]+)", "propose", xet_token),
    ("GET", f"{API}/xet-read-token/(?P<revision>[^/]+)", "contents", xet_token),
    ("POST", f"{_LFS}/batch", "read", lfs_batch),
    ("POST", f"{_LFS}/verify", "read", lfs_verify),
]
