"""The Hub on loopback: repositories in memory, spoken to by the unmodified clients, strict on what they send."""

import base64
import hashlib
import itertools
import json
import re
import secrets
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

WRITE, READ, OTHER, FINE = "hf_write_of_me", "hf_read_of_me", "hf_write_of_other", "hf_fine_of_me"
MAX_FILES = 256
LFS_MEDIA = "application/vnd.git-lfs+json"
LFS_SIZE = 10 * 2**20
LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".h5", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors")
LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "odc-by", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "llama2", "llama3", "llama3.1", "gemma", "unknown", "other",
}  # fmt: skip


class Request(NamedTuple):
    """A request as it came in; the status is 0 if the connection was dropped."""

    method: str
    path: str
    status: int
    agent: str


@dataclass(frozen=True)
class Account:
    """Who a token belongs to and what it may do; a fine-grained one knows no repository but those of its scope."""

    user: str
    role: str
    orgs: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.user, *self.orgs) and (not self.scope or repo_id in self.scope)

    def writes(self, repo_id: str) -> bool:
        return self.owns(repo_id) and self.role != "read"


ACCOUNTS = {
    WRITE: Account("me", "write", ("lab",)),
    READ: Account("me", "read", ("lab",)),
    OTHER: Account("other", "write"),
    FINE: Account("me", "fineGrained", ("lab",), ("me/allowed",)),
}
TOKEN = re.compile("|".join([*ACCOUNTS, "hf_[A-Za-z0-9]{30,}"]))


@dataclass(frozen=True)
class File:
    """A file of a commit; `oid` is the one of git, of the pointer if the content is in large file storage."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def to_dict(self, digest: str) -> dict[str, Any]:
        lfs = {digest: self.sha256, "size": self.size, "pointerSize": len(lfs_pointer(self.sha256, self.size))}
        return {"size": self.size, **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, File] = field(repr=False)


@dataclass
class Repo:
    """A repository: its commits, where its refs point, and the large files it was sent."""

    type: str
    id: str
    private: bool = False
    gated: bool | str = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    objects: set[str] = field(default_factory=set)
    xet_folders: list[Path] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/{'' if self.type == 'model' else 'datasets/'}{self.id}"

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        if name := self.ref(revision):
            return self.commits[self.refs[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for oid in self.commits:
                if oid.startswith(revision):
                    return self.commits[oid]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> Iterator[Commit]:
        commit = self.find(revision)
        yield commit
        while commit.parent:
            commit = self.commits[commit.parent]
            yield commit


@dataclass
class Call:
    """A request on its way to its route."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None = None

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Answer:
    """What is sent back: bytes as they are, anything else as JSON; nothing if the connection is to drop."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Fault:
    """What is to go wrong with the next requests that match."""

    method: str
    path: str
    times: int
    after: bool
    answer: Answer


class Refusal(Exception):  # noqa: N818
    """An error of the Hub, as its clients read it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None, **headers: str):
        super().__init__(message)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        codes = {"X-Error-Code": code} if code else {}
        self.answer = Answer(body or {"error": message}, status, {"X-Error-Message": message, **codes, **named})


class Breach(Refusal):
    """A refusal of what no client may send."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(status, message)


def check(condition: object, message: str) -> None:
    if not condition:
        raise Breach(message)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def lfs_pointer(digest: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """Whether a file goes to large file storage: by its name, its size, or because it is not text."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample[:512])


def read_card(card: str) -> Any:
    """The metadata at the top of a card, nothing if there is none."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?\n)?---[ \t]*(\r?\n|\Z)", card, re.DOTALL)
    return yaml.safe_load(block[1] or "") if block else None


def _strings(value: object, pattern: str = r"\S.*") -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) and re.fullmatch(pattern, one) for one in values)


def _is_index(value: Any) -> bool:
    """Whether every result of a model index has a task, a dataset and metrics with values."""
    try:
        for result in itertools.chain.from_iterable(model["results"] for model in value if model["name"]):
            names = result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
            metrics = [(metric["type"], metric["value"]) for metric in result["metrics"]]
            if not all(names) or not metrics or any(None in metric for metric in metrics):
                return False
    except (KeyError, TypeError):
        return False
    return True


_REPO_NAME = r"[\w.-]+(/[\w.-]+)?"
METADATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "license": (
        lambda value: _strings(value, "|".join(map(re.escape, LICENSES))),
        "must be a license of the Hub's list",
    ),
    "tags": (lambda value: isinstance(value, list) and _strings(value), "must be an array of strings"),
    "base_model": (lambda value: _strings(value, _REPO_NAME), "must be names of models on the Hub"),
    "datasets": (lambda value: _strings(value, _REPO_NAME), "must be names of datasets on the Hub"),
    "language": (lambda value: _strings(value, r"[a-z]{2,3}(-\w+)?|multilingual|code"), "must be ISO 639 codes"),
    "library_name": (lambda value: isinstance(value, str), "must be a string"),
    "pipeline_tag": (lambda value: isinstance(value, str), "must be a string"),
    "model-index": (_is_index, "must name task, dataset and metrics of every result"),
}


def metadata_errors(card: str) -> list[str]:
    """What the Hub would not take in the metadata of a card."""
    try:
        metadata = read_card(card)
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(metadata or {}, dict):
        return ["the metadata must be an object"]
    checked = {key: rule for key, rule in METADATA.items() if (metadata or {}).get(key) is not None}
    return [f'"{key}" {message}' for key, (valid, message) in checked.items() if not valid(metadata[key])]


def _xet_hex(raw: bytes) -> str:
    """A hash of a Xet shard as text: four little-endian integers."""
    return b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8)).hex()


def read_shard(shard: bytes) -> dict[str, str]:
    """The Xet hashes of the files of a shard, by their sha256."""
    files, start = {}, 48
    while shard[start : start + 32] != b"\xff" * 32:
        flags, entries = struct.unpack_from("<II", shard, start + 32)
        end = start + 48 * (1 + entries * (2 if flags >> 31 else 1))
        if flags >> 30 & 1:
            files[_xet_hex(shard[end : end + 32])] = _xet_hex(shard[start : start + 32])
            end += 48
        start = end
    return files


def read_xet(folder: Path, digest: str, size: int) -> bytes | None:
    """The content with a sha256 that a client left in a folder it was given as Xet storage."""
    import hf_xet

    for shard in folder.rglob("shards/*.mdb"):
        if name := read_shard(shard.read_bytes()).get(digest):
            group = hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{folder}")
            content = b"".join(map(bytes, group.download_stream(hf_xet.XetFileInfo(name, size))))
            return content if sha256_of(content) == digest else None
    return None


_API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+(?:/[^/]+)?)"
_LFS = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects"
ROUTES = [  # method, path, what it needs of a repository, name of the function
    ("GET", "/api/whoami-v2", None, "whoami"),
    ("POST", "/api/validate-yaml", None, "validate_yaml"),
    ("POST", "/api/repos/create", None, "create_repo"),
    ("DELETE", "/api/repos/delete", None, "delete_repo"),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", None, "collection"),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", None, "add_item"),
    ("GET", f"{_API}/refs", "read", "list_refs"),
    ("GET", f"{_API}/commits/(?P<revision>[^/]+)", "read", "list_commits"),
    ("GET", f"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "read", "tree"),
    ("POST", f"{_API}/paths-info/(?P<revision>[^/]+)", "read", "paths_info"),
    ("GET", f"{_API}/auth-check", "contents", "auth_check"),
    ("GET", f"{_API}/auth-check/write", "write", "auth_check"),
    ("GET", f"{_API}/discussions", "read", "list_discussions"),
    ("POST", f"{_API}/discussions", "discuss", "open_discussion"),
    ("GET", rf"{_API}/discussions/(?P<num>\d+)", "read", "discussion"),
    ("PUT", f"{_API}/settings", "write", "settings"),
    ("POST", f"{_API}/branch/(?P<name>[^/]+)", "write", "create_branch"),
    ("POST", f"{_API}/tag/(?P<revision>[^/]+)", "write", "create_tag"),
    ("DELETE", f"{_API}/(?P<sort>branch|tag)/(?P<name>[^/]+)", "write", "delete_ref"),
    ("POST", f"{_API}/preupload/(?P<revision>[^/]+)", "propose", "preupload"),
    ("POST", f"{_API}/commit/(?P<revision>[^/]+)", "propose", "commit"),
    ("GET", f"{_API}/xet-write-token/(?P<revision>[^/]+)", "propose", "xet_token"),
    ("GET", f"{_API}/xet-read-token/(?P<revision>[^/]+)", "contents", "xet_token"),
    ("POST", f"{_LFS}/batch", "read", "lfs_batch"),
    ("POST", f"{_LFS}/verify", "read", "lfs_verify"),
    ("GET", f"{_API}/revision/(?P<revision>[^/]+)", "read", "info"),
    ("GET", _API, "read", "info"),
    ("GET", r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
     "contents", "resolve"),
]  # fmt: skip
STORAGE_ROUTES = [
    ("PUT", r"/upload/(?P<digest>[0-9a-f]{64})/(?P<size>\d+)", None, "upload"),
    ("GET", "/blob/(?P<digest>[0-9a-f]{64})", None, "download"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "_Origin"

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.hub.receive(self.command, self.path, self.headers, body, self.server.routes)
        self.close_connection = answer.drop
        if answer.drop:
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        kind = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """The server keeps its own list of requests."""


class _Origin(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: "HubServer", routes: list[tuple[str, str, str | None, str]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.routes, self.url = hub, routes, f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class HubServer:
    """A Hub and, at another origin, the storage of its large files.

    `requests` are those that came in, `breaches` what a client did that the Hub would not have it do.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="hub-"))
        self.reset()
        self._hub, self._storage = _Origin(self, ROUTES), _Origin(self, STORAGE_ROUTES)
        self.url, self.storage_url = self._hub.url, self._storage.url

    def close(self) -> None:
        for origin in (self._hub, self._storage):
            origin.shutdown()
            origin.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def reset(self) -> None:
        """Forget everything but the accounts; names of commits never come again."""
        with self._lock:
            self.repos: dict[tuple[str, str], Repo] = {}
            self.collections: dict[str, list[dict[str, Any]]] = {}
            self.blobs: dict[str, bytes] = {}
            self.requests: list[Request] = []
            self.breaches: list[str] = []
            self.page_size = 1000
            self._faults: list[Fault] = []
            self._signed: dict[str, Repo] = {}
            for folder in self._folder.iterdir():
                shutil.rmtree(folder, ignore_errors=True)

    # What tests put in and look at

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, type: str = "model", **settings: Any
    ) -> Repo:
        """A repository with one commit; settings are `private`, `gated` and `readers`, who see it all the same."""
        repo = self.repos[type, repo_id] = Repo(type, repo_id, **settings)
        self.add_commit(repo, files or {})
        return repo

    def add_commit(self, repo: Repo, files: Mapping[str, bytes], title: str = "initial commit") -> Commit:
        """A commit of these files on main, as if someone else had pushed it."""
        tree = dict(repo.find("main").tree) if repo.refs else {}
        tree |= {path: self._store(repo, path, content) for path, content in files.items()}
        return self._write(repo, "refs/heads/main", tree, title, "", repo.id.split("/")[0])

    def add_collection(self, slug: str) -> None:
        self.collections[slug] = []

    def repo(self, repo_id: str, type: str = "model") -> Repo:
        return self.repos[type, repo_id]

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        tree = self.repo(repo_id, type).find(revision).tree
        return {path: self.blobs[file.sha256] for path, file in sorted(tree.items())}

    def commits(self, repo_id: str, revision: str = "main", type: str = "model") -> list[Commit]:
        """The commits of a revision, the latest first."""
        return list(self.repo(repo_id, type).history(revision))

    def fail(
        self,
        method: str,
        path: str,
        status: int = 503,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        after: bool = False,
        drop: bool = False,
    ) -> None:
        """Fail the next requests whose raw path has the pattern: with a status, or by dropping the connection.

        With `after` the work is done first and only the answer is lost.
        """
        answer = Answer({"error": f"fault {status}"}, status, dict(headers or {}), drop)
        self._faults.append(Fault(method, path, times, after, answer))

    # How a request is answered

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes, routes: list) -> Answer:
        with self._lock:
            fault = next((one for one in self._faults if one.method == method and re.search(one.path, path)), None)
            if fault:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
            answer = Answer()
            if not fault or fault.after:
                split = urlsplit(path)
                answer = self._answer(Call(method, split.path, parse_qs(split.query), headers, body), path, routes)
            answer = fault.answer if fault else answer
            status = 0 if answer.drop else answer.status
            self.requests.append(Request(method, TOKEN.sub("<token>", path), status, headers.get("User-Agent", "")))
            return answer

    def _answer(self, call: Call, path: str, routes: list[tuple[str, str, str | None, str]]) -> Answer:
        try:
            check("Transfer-Encoding" not in call.headers, "a body without its length")
            leaks = TOKEN.search(path) or TOKEN.search(call.body.decode("latin-1"))
            check(not leaks, "a token outside the header meant for it")
            self._authenticate(call, storage=routes is STORAGE_ROUTES)
            for method, pattern, need, name in routes:
                match = re.fullmatch(pattern, call.path)
                if match and method in (call.method, "GET" if call.method == "HEAD" else ""):
                    groups = {key: unquote(value) for key, value in match.groupdict("").items()}
                    if need:
                        groups["repo"] = self._find(call, need, groups.pop("kind"), groups.pop("id"), groups)
                    answer = getattr(self, f"_{name}")(call, **groups)
                    return answer if isinstance(answer, Answer) else Answer(answer)
            raise Breach("no such route", 404)
        except Refusal as refusal:
            error = refusal
        except Exception as unexpected:
            error = Breach(f"cannot be answered: {unexpected!r}")
        if isinstance(error, Breach):
            self.breaches.append(TOKEN.sub("<token>", f"{call.method} {path}: {error}"))
        return error.answer

    def _authenticate(self, call: Call, storage: bool) -> None:
        scheme, _, token = call.headers.get("Authorization", "").partition(" ")
        check(not (storage and scheme), "a token sent to the storage")
        check(scheme in ("", "Bearer"), "Authorization without Bearer")
        if scheme and token not in ACCOUNTS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        call.account = ACCOUNTS.get(token)

    def _find(self, call: Call, need: str, kind: str, repo_id: str, groups: dict[str, str]) -> Repo:
        """The repository of a call that may do to it what the route needs."""
        account = call.account
        repo = self.repos.get(("dataset" if kind == "datasets" else "model", repo_id))
        known = repo and account and (account.owns(repo_id) or account.user in repo.readers)
        if not repo or (repo.private and not known):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if need == "contents" and repo.gated and not known:
            raise Refusal(403 if account else 401, f"Access to {repo_id} is restricted", "GatedRepo")
        if need in ("write", "propose", "discuss"):
            revision = groups.get("revision", "") if need == "propose" else ""
            proposes = need == "discuss" or (need == "propose" and "create_pr" in call.query)
            self._check_write(account, repo, revision, proposes)
        return repo

    def _check_write(self, account: Account | None, repo: Repo, revision: str = "", proposes: bool = False) -> None:
        """Raise unless an account may write to a repository, its author to a pull request, anyone to propose."""
        if not account:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        authors = {f"refs/pr/{opened['num']}": opened["author"]["name"] for opened in repo.discussions}
        proposes = proposes or authors.get(revision) == account.user
        if not (account.writes(repo.id) or (proposes and account.role == "write")):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")

    def _store(self, repo: Repo, path: str, content: bytes) -> File:
        digest, size = sha256_of(content), len(content)
        self.blobs[digest] = content
        lfs = is_lfs(path, content, size)
        if lfs:
            repo.objects.add(digest)
        return File(digest, size, git_oid(lfs_pointer(digest, size) if lfs else content), lfs)

    def _write(self, repo: Repo, ref: str, tree: dict[str, File], title: str, message: str, author: str) -> Commit:
        """Add a commit to a ref."""
        oid = hashlib.sha1(f"{next(self._numbers)} {repo.id} {title}".encode()).hexdigest()
        repo.commits[oid] = Commit(oid, repo.refs.get(ref), title, message, author, now(), tree)
        repo.refs[ref] = oid
        return repo.commits[oid]

    def _page(self, call: Call, entries: list[Any]) -> Answer:
        start = int(call.query.get("cursor", ["0"])[0])
        end = start + self.page_size
        query = urlencode({**call.query, "cursor": end}, doseq=True)
        link = {"Link": f'<{self.url}{call.path}?{query}>; rel="next"'} if end < len(entries) else {}
        return Answer(entries[start:end], headers=link)

    def _sign(self, repo: Repo, path: str) -> str:
        """The address of a path of the storage, good for whoever has it."""
        signed = f"{path}?signature={secrets.token_hex(8)}"
        self._signed[signed] = repo
        return self.storage_url + signed

    # Accounts, cards, collections

    def _whoami(self, call: Call) -> Any:
        account = call.account
        if not account:
            raise Refusal(401, "Invalid username or password.")
        scoped = [{"entity": {"type": "model", "name": name}, "permissions": ["repo.write"]} for name in account.scope]
        token = {"displayName": "test", "role": account.role, "fineGrained": {"global": [], "scoped": scoped}}
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in account.orgs]
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": account.user, "orgs": orgs, "auth": auth}

    def _validate_yaml(self, call: Call) -> Answer:
        body = call.json()
        check(body["repoType"] in ("model", "dataset", "space"), "an unknown type of repository")
        errors = metadata_errors(body["content"])
        empty = not errors and not read_card(body["content"])
        warnings = ["empty or missing yaml metadata in repo card"] if empty else []
        answer = {"errors": [{"message": error} for error in errors], "warnings": [{"message": w} for w in warnings]}
        plain = call.headers.get("Accept") == "text/plain"
        return Answer("\n".join(errors + warnings).encode() if plain else answer, 400 if errors else 200)

    def _collection_of(self, slug: str) -> list[dict[str, Any]]:
        if slug not in self.collections:
            raise Refusal(404, "Collection not found")
        return self.collections[slug]

    def _collection(self, call: Call, slug: str) -> Any:
        items = self._collection_of(slug)
        known = {"title": slug, "owner": slug.split("/")[0], "private": False, "theme": "green", "upvotes": 0}
        return {**known, "slug": slug, "items": items, "lastUpdated": now(), "position": 0}

    def _add_item(self, call: Call, slug: str) -> Any:
        items = self._collection_of(slug)
        self._check_write(call.account, Repo("collection", slug))
        body = call.json()
        named = {key: body["item"][key] for key in ("type", "id")}
        if (named["type"], named["id"]) not in self.repos:
            raise Refusal(404, "Item not found")
        if any(named.items() <= item.items() for item in items):
            raise Refusal(409, "Item is already in the collection")
        note = {"note": {"text": body["note"]}} if "note" in body else {}
        items.append({"_id": f"{len(items):024x}", **named, "position": len(items), **note})
        return self._collection(call, slug)

    # Repositories

    def _named(self, call: Call) -> tuple[dict[str, Any], str, str]:
        if not call.account:
            raise Refusal(401, "Invalid username or password.")
        body = call.json()
        return body, body.get("type", "model"), f"{body.get('organization') or call.account.user}/{body['name']}"

    def _create_repo(self, call: Call) -> Any:
        body, type, repo_id = self._named(call)
        check(type in ("model", "dataset"), "an unknown type of repository")
        check(re.fullmatch(r"\w([\w.-]{0,94}\w)?", body["name"]), "an invalid name")
        if not call.account.writes(repo_id) or call.account.scope:
            raise Refusal(403, f"You don't have the rights to create a {type} under this namespace")
        url = self.url + Repo(type, repo_id).path
        if (type, repo_id) in self.repos:
            message = f"You already created this {type} repo"
            raise Refusal(409, message, body={"error": message, "url": url})
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        private = body.get("visibility") == "private"
        self.add_repo(repo_id, {".gitattributes": attributes.encode()}, type, private=private)
        return {"url": url, "name": repo_id}

    def _delete_repo(self, call: Call) -> Any:
        _, type, repo_id = self._named(call)
        self._find(call, "write", f"{type}s", repo_id, {})
        del self.repos[type, repo_id]
        return {}

    def _settings(self, call: Call, repo: Repo) -> Any:
        body = call.json()
        repo.gated = body.get("gated", repo.gated)
        repo.private = body.get("visibility", "private" if repo.private else "public") == "private"
        return {"private": repo.private, "gated": repo.gated}

    def _auth_check(self, call: Call, repo: Repo) -> Any:
        return {}

    def _info(self, call: Call, repo: Repo, revision: str = "main") -> Any:
        commit = repo.find(revision)
        card = commit.tree.get("README.md")
        metadata = read_card(self.blobs[card.sha256].decode()) if card else None
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

    def _list_refs(self, call: Call, repo: Repo) -> Any:
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

    def _list_commits(self, call: Call, repo: Repo, revision: str) -> Answer:
        return self._page(call, [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in repo.history(revision)
        ])  # fmt: skip

    def _entries(self, call: Call, commit: Commit) -> dict[str, dict[str, Any]]:
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

    def _tree(self, call: Call, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.find(revision)
        entries = self._entries(call, commit)
        if path and entries.get(path, {}).get("type") != "directory":
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", X_Repo_Commit=commit.oid)
        start = f"{path}/" if path else ""
        inside = [entry for name, entry in entries.items() if name.startswith(start)]
        if call.query.get("recursive", [""])[0].lower() not in ("true", "1"):
            inside = [entry for entry in inside if "/" not in entry["path"].removeprefix(start)]
        return self._page(call, inside)

    def _paths_info(self, call: Call, repo: Repo, revision: str) -> Any:
        form = parse_qs(call.body.decode())
        call.query.update(form)
        entries = self._entries(call, repo.find(revision))
        return [entries[path] for path in form["paths"] if path in entries]

    def _create_branch(self, call: Call, repo: Repo, name: str) -> Any:
        return self._add_ref(repo, f"refs/heads/{name}", call.json().get("startingPoint", "main"))

    def _create_tag(self, call: Call, repo: Repo, revision: str) -> Any:
        return self._add_ref(repo, f"refs/tags/{call.json()['tag']}", revision)

    def _add_ref(self, repo: Repo, name: str, revision: str) -> Any:
        if name in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[name] = repo.find(revision).oid
        return {}

    def _delete_ref(self, call: Call, repo: Repo, sort: str, name: str) -> Any:
        if (sort, name) == ("branch", "main"):
            raise Refusal(403, "Cannot delete the branch main")
        if not repo.refs.pop(f"refs/{'heads' if sort == 'branch' else 'tags'}/{name}", None):
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return {}

    # Discussions and pull requests

    def _open(self, repo: Repo, author: str, title: str, pull: bool, type: str, data: Any) -> dict[str, Any]:
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

    def _list_discussions(self, call: Call, repo: Repo) -> Any:
        return {"discussions": repo.discussions, "count": len(repo.discussions), "start": 0}

    def _open_discussion(self, call: Call, repo: Repo) -> Any:
        body, user = call.json(), call.account.user
        said = {"edited": False, "hidden": False, "latest": {"raw": body["description"]}}
        opened = self._open(repo, user, body["title"], body["pullRequest"], "comment", said)
        if body["pullRequest"]:
            repo.refs[f"refs/pr/{opened['num']}"] = repo.find("main").oid
        return opened

    def _discussion(self, call: Call, repo: Repo, num: str) -> Any:
        if not 0 < int(num) <= len(repo.discussions):
            raise Refusal(404, "Discussion not found")
        return repo.discussions[int(num) - 1]

    # Uploads

    def _preupload(self, call: Call, repo: Repo, revision: str) -> Any:
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

    def _lfs_batch(self, call: Call, repo: Repo) -> Answer:
        body = call.json()
        self._check_write(call.account, repo, body.get("ref", {}).get("name", ""), proposes="ref" not in body)
        media = {call.headers.get("Accept"), call.headers.get("Content-Type")}
        check(media == {LFS_MEDIA}, "a batch of another media type")
        check((body["operation"], body["hash_algo"]) == ("upload", "sha256"), "not an upload by sha256")
        check("basic" in body["transfers"] and len(body["objects"]) <= MAX_FILES, "not a batch of basic transfers")
        objects = []
        for one in body["objects"]:
            oid, size = one["oid"], one["size"]
            check(re.fullmatch("[0-9a-f]{64}", oid) and size > 0, "not an object")
            verify = {"href": f"{self.url}{repo.path}.git/info/lfs/objects/verify"}
            actions = {"upload": {"href": self._sign(repo, f"/upload/{oid}/{size}")}, "verify": verify}
            objects.append({"oid": oid, "size": size, **({} if oid in repo.objects else {"actions": actions})})
        return Answer({"transfer": "basic", "objects": objects}, headers={"Content-Type": LFS_MEDIA})

    def _lfs_verify(self, call: Call, repo: Repo) -> Any:
        body = call.json()
        self._check_write(call.account, repo, proposes=True)
        if body["oid"] not in repo.objects or len(self.blobs[body["oid"]]) != body["size"]:
            raise Refusal(404, "Object not found")
        return {}

    def _xet_token(self, call: Call, repo: Repo, revision: str) -> Answer:
        """A token for storage in a folder of its own: Xet locks the folders it has open."""
        if "create_pr" not in call.query:
            repo.find(revision)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        repo.xet_folders.append(folder)
        token = {"casUrl": f"local://{folder}", "accessToken": secrets.token_hex(8), "exp": int(time.time()) + 3600}
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        return Answer(token, headers=dict(zip(names, map(str, token.values()), strict=True)))

    def _commit(self, call: Call, repo: Repo, revision: str) -> Any:
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
            self._apply(repo, tree, operation["key"], operation["value"])
        folders = {str(parent) for path in tree for parent in Path(path).parents}
        check(not folders & tree.keys(), "a file and a folder of the same name")
        card = tree.get("README.md")
        if card and (errors := metadata_errors(self.blobs[card.sha256].decode())):
            raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(errors))
        summary, user = header["value"]["summary"], call.account.user
        repo.refs.setdefault(ref, base.oid)
        commit = self._write(repo, ref, tree, summary, header["value"].get("description", ""), user)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.url}{repo.path}/commit/{commit.oid}"}
        if proposes:
            data = {"subject": summary, "oid": commit.oid}
            num = self._open(repo, user, summary, True, "commit", data)["num"]
            answer["pullRequestUrl"] = f"{self.url}{repo.path}/discussions/{num}"
        return answer

    def _apply(self, repo: Repo, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
        """Do one operation of a commit to its tree."""
        path = value["path"]
        parts = path.rstrip("/").split("/")
        check(not {"", ".", "..", ".git"}.intersection(parts), "a path that is not one of a file in a repository")
        if key == "file":
            check(value["encoding"] == "base64", "an encoding other than base64")
            content = base64.b64decode(value["content"], validate=True)
            check(not is_lfs(path, content, len(content)), "a large file in the body of a commit")
            tree[path] = self._store(repo, path, content)
        elif key == "lfsFile":
            check(value["algo"] == "sha256", "an algorithm other than sha256")
            content = self._large(repo, value["oid"], value.get("size", 0))
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

    def _large(self, repo: Repo, digest: str, size: int) -> bytes | None:
        """A large file that was sent to a repository, by either way."""
        if digest not in repo.objects:
            found = (read_xet(folder, digest, size) for folder in repo.xet_folders)
            content = next((one for one in found if one is not None), None)
            if content is None:
                return None
            self.blobs[digest] = content
            repo.objects.add(digest)
        return self.blobs[digest]

    # Downloads, and the storage

    def _resolve(self, call: Call, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.find(revision)
        file = commit.tree.get(path)
        if not file:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
        if not file.lfs:
            return self._content(call, self.blobs[file.sha256], headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return Answer(b"", 302, {**headers, "Location": self._sign(repo, f"/blob/{file.sha256}")})

    def _content(self, call: Call, content: bytes, headers: dict[str, str]) -> Answer:
        """A file, or the range of it that is asked for."""
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

    def _owner(self, call: Call) -> Repo:
        signed = f"{call.path}?signature={call.query.get('signature', [''])[0]}"
        if signed not in self._signed:
            raise Refusal(403, "The signature does not match")
        return self._signed[signed]

    def _upload(self, call: Call, digest: str, size: str) -> Any:
        repo = self._owner(call)
        if len(call.body) != int(size) or sha256_of(call.body) != digest:
            raise Refusal(400, "The content is not what was announced")
        self.blobs[digest] = call.body
        repo.objects.add(digest)
        return {}

    def _download(self, call: Call, digest: str) -> Answer:
        self._owner(call)
        return self._content(call, self.blobs[digest], {"ETag": f'"{digest}"'})
