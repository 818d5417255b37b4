"""Routes of a repository: its facts, files, refs and discussions."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from .metadata import read_card
from .protocol import Answer, Call, Refusal, Route, now
from .repos import Commit, Repo

if TYPE_CHECKING:
    from .hub import HubServer

API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+(?:/[^/]+)?)"


def settings(hub: "HubServer", call: Call, repo: Repo) -> Any:
    body = call.json()
    repo.gated = body.get("gated", repo.gated)
    repo.private = body.get("visibility", "private" if repo.private else "public") == "private"
    return {"private": repo.private, "gated": repo.gated}


def auth_check(hub: "HubServer", call: Call, repo: Repo) -> Any:
    return {}


def info(hub: "HubServer", call: Call, repo: Repo, revision: str = "main") -> Any:
    commit = repo.find(revision)
    card = commit.tree.get("README.md")
    metadata = read_card(hub.blobs[card.sha256].decode()) if card else None
    blobs = "blobs" in call.query
    known = {
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": min(one.date for one in repo.commits.values()),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "tags": (metadata or {}).get("tags") or [],
        "cardData": metadata or {},
        "siblings": [
            {"rfilename": path, **({"blobId": file.oid, **file.to_dict("sha256")} if blobs else {})}
            for path, file in sorted(commit.tree.items())
        ],
    }
    asked = call.query.get("expand", known)
    return {"id": repo.id, **{key: value for key, value in known.items() if key in asked}}


def list_refs(hub: "HubServer", call: Call, repo: Repo) -> Any:
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
    if "include_prs" in call.query:
        kinds["pullRequests"] = "refs/pr/"
    return {
        kind: [
            {"name": ref if start == "refs/pr/" else ref.removeprefix(start), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(start)
        ]
        for kind, start in kinds.items()
    }


def list_commits(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Answer:
    return page(hub, call, [
        {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in repo.history(revision)
    ])  # fmt: skip


def entries_of(call: Call, commit: Commit) -> dict[str, dict[str, Any]]:
    """Every file and folder of a commit by its path."""
    entries: dict[str, dict[str, Any]] = {}
    last = {"lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}}
    expand = last if call.query.get("expand", [""])[0].lower() == "true" else {}
    for path, file in sorted(commit.tree.items()):
        for folder in map(str, Path(path).parents[-2::-1]):
            oid = hashlib.sha1(f"{commit.oid}/{folder}".encode()).hexdigest()
            entries.setdefault(folder, {"type": "directory", "path": folder, "oid": oid, "size": 0, **expand})
        entries[path] = {"type": "file", "path": path, "oid": file.oid, **file.to_dict("oid"), **expand}
    return entries


def tree(hub: "HubServer", call: Call, repo: Repo, revision: str, path: str) -> Answer:
    commit = repo.find(revision)
    entries = entries_of(call, commit)
    if path and entries.get(path, {}).get("type") != "directory":
        raise Refusal(404, f"{path} does not exist", "EntryNotFound", X_Repo_Commit=commit.oid)
    start = f"{path}/" if path else ""
    inside = [entry for name, entry in entries.items() if name.startswith(start)]
    if call.query.get("recursive", [""])[0].lower() not in ("true", "1"):
        inside = [entry for entry in inside if "/" not in entry["path"].removeprefix(start)]
    return page(hub, call, inside)


def paths_info(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Any:
    form = parse_qs(call.body.decode())
    call.query.update(form)
    entries = entries_of(call, repo.find(revision))
    return [entries[path] for path in form["paths"] if path in entries]


def create_branch(hub: "HubServer", call: Call, repo: Repo, name: str) -> Any:
    return add_ref(repo, f"refs/heads/{name}", call.json().get("startingPoint", "main"))


def create_tag(hub: "HubServer", call: Call, repo: Repo, revision: str) -> Any:
    return add_ref(repo, f"refs/tags/{call.json()['tag']}", revision)


def add_ref(repo: Repo, name: str, revision: str) -> Any:
    if name in repo.refs:
        raise Refusal(409, "Reference already exists")
    repo.refs[name] = repo.find(revision).oid
    return {}


def delete_ref(hub: "HubServer", call: Call, repo: Repo, sort: str, name: str) -> Any:
    if (sort, name) == ("branch", "main"):
        raise Refusal(403, "Cannot delete the branch main")
    if not repo.refs.pop(f"refs/{'heads' if sort == 'branch' else 'tags'}/{name}", None):
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return {}


def page(hub: "HubServer", call: Call, entries: list[Any]) -> Answer:
    start = int(call.query.get("cursor", ["0"])[0])
    end = start + hub.page_size
    query = urlencode({**call.query, "cursor": end}, doseq=True)
    link = {"Link": f'<{hub.url}{call.path}?{query}>; rel="next"'} if end < len(entries) else {}
    return Answer(entries[start:end], headers=link)


def open_thread(repo: Repo, author: str, title: str, pull: bool, type: str, data: Any) -> dict[str, Any]:
    """A discussion or pull request with its first event."""
    event = {"id": "0", "type": type, "data": data, "author": {"name": author}, "createdAt": now()}
    opened = {
        "num": len(repo.discussions) + 1,
        "title": title,
        "author": {"name": author},
        "createdAt": now(),
        "status": "draft" if pull else "open",
        "isPullRequest": pull,
        "repo": {"name": repo.id, "type": repo.type},
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "events": [event],
    }
    repo.discussions.append(opened)
    return opened


def list_discussions(hub: "HubServer", call: Call, repo: Repo) -> Any:
    return {"discussions": repo.discussions, "count": len(repo.discussions), "start": 0}


def open_discussion(hub: "HubServer", call: Call, repo: Repo) -> Any:
    body, user = call.json(), call.account.user
    content = {"edited": False, "hidden": False, "latest": {"raw": body["description"]}}
    opened = open_thread(repo, user, body["title"], body["pullRequest"], "comment", content)
    if body["pullRequest"]:
        repo.refs[f"refs/pr/{opened['num']}"] = repo.find("main").oid
    return opened


def discussion(hub: "HubServer", call: Call, repo: Repo, num: str) -> Any:
    if not 0 < int(num) <= len(repo.discussions):
        raise Refusal(404, "Discussion not found")
    return repo.discussions[int(num) - 1]


ROUTES: list[Route] = [  # method, path, rights it needs, function
    ("GET", f"{API}/refs", "read", list_refs),
    ("GET", f"{API}/commits/(?P<revision>[^/]+)", "read", list_commits),
    ("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "read", tree),
    ("POST", f"{API}/paths-info/(?P<revision>[^/]+)", "read", paths_info),
    ("GET", f"{API}/auth-check", "contents", auth_check),
    ("GET", f"{API}/auth-check/write", "write", auth_check),
    ("GET", f"{API}/discussions", "read", list_discussions),
    ("POST", f"{API}/discussions", "discuss", open_discussion),
    ("GET", rf"{API}/discussions/(?P<num>\d+)", "read", discussion),
    ("PUT", f"{API}/settings", "write", settings),
    ("POST", f"{API}/branch/(?P<name>[^/]+)", "write", create_branch),
    ("POST", f"{API}/tag/(?P<revision>[^/]+)", "write", create_tag),
    ("DELETE", f"{API}/(?P<sort>branch|tag)/(?P<name>[^/]+)", "write", delete_ref),
    ("GET", f"{API}/revision/(?P<revision>[^/]+)", "read", info),
    ("GET", API, "read", info),
]
