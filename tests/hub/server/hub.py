"""A Hub and the storage of its large files, each at an address of its own on loopback."""

import hashlib
import itertools
import json
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import download_routes, repo_routes, site_routes, upload_routes
from .accounts import ACCOUNTS, TOKEN, Account
from .download_routes import STORAGE_ROUTES
from .protocol import Answer, Breach, Call, Fault, Refusal, Request, Route, check, now
from .repos import Commit, File, Repo, git_oid, is_lfs, lfs_pointer, sha256_of

ROUTES = [*site_routes.ROUTES, *repo_routes.ROUTES, *upload_routes.ROUTES, *download_routes.ROUTES]


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
        """Do nothing: the server keeps its own list of requests."""


class _Origin(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: "HubServer", routes: list[Route]):
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
        self.folder = Path(tempfile.mkdtemp(prefix="hub-"))
        self.reset()
        self._hub, self._storage = _Origin(self, ROUTES), _Origin(self, STORAGE_ROUTES)
        self.url, self.storage_url = self._hub.url, self._storage.url

    def close(self) -> None:
        for origin in (self._hub, self._storage):
            origin.shutdown()
            origin.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

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
            self.signed: dict[str, Repo] = {}
            for folder in self.folder.iterdir():
                shutil.rmtree(folder, ignore_errors=True)

    # Used by tests

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, type: str = "model", **settings: Any
    ) -> Repo:
        """A repository with one commit; settings are `private`, `gated` and `readers`, who may read it all the same."""
        repo = self.repos[type, repo_id] = Repo(type, repo_id, **settings)
        self.add_commit(repo, files or {})
        return repo

    def add_commit(self, repo: Repo, files: Mapping[str, bytes], title: str = "initial commit") -> Commit:
        """A commit of these files on main, as if someone else had pushed it."""
        tree = dict(repo.find("main").tree) if repo.refs else {}
        tree |= {path: self.store(repo, path, content) for path, content in files.items()}
        return self.write(repo, "refs/heads/main", tree, title, "", repo.id.split("/")[0])

    def add_collection(self, slug: str) -> None:
        self.collections[slug] = []

    def repo(self, repo_id: str, type: str = "model") -> Repo:
        return self.repos[type, repo_id]

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        tree = self.repo(repo_id, type).find(revision).tree
        return {path: self.blobs[file.sha256] for path, file in sorted(tree.items())}

    def published(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        """All files but the one that the Hub makes itself."""
        files = self.files(repo_id, revision, type)
        return {path: content for path, content in files.items() if path != ".gitattributes"}

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

    def mend(self) -> None:
        """Stop failing."""
        self._faults.clear()

    # Answers to requests

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes, routes: list[Route]) -> Answer:
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

    def _answer(self, call: Call, path: str, routes: list[Route]) -> Answer:
        try:
            check("Transfer-Encoding" not in call.headers, "a body without its length")
            leaks = TOKEN.search(path) or TOKEN.search(call.body.decode("latin-1"))
            check(not leaks, "a token outside the header meant for it")
            self._authenticate(call, storage=routes is STORAGE_ROUTES)
            for method, pattern, need, function in routes:
                match = re.fullmatch(pattern, call.path)
                if match and method in (call.method, "GET" if call.method == "HEAD" else ""):
                    groups = {key: unquote(value) for key, value in match.groupdict("").items()}
                    if need:
                        groups["repo"] = self.find(call, need, groups.pop("kind"), groups.pop("id"), groups)
                    answer = function(self, call, **groups)
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

    def find(self, call: Call, need: str, kind: str, repo_id: str, groups: dict[str, str]) -> Repo:
        """The repository of a call, if the caller has the rights that the route needs."""
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
            self.check_write(account, repo, revision, proposes)
        return repo

    def check_write(self, account: Account | None, repo: Repo, revision: str = "", proposes: bool = False) -> None:
        """Raise unless an account may write to a repository, its author to a pull request, anyone to propose."""
        if not account:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        authors = {f"refs/pr/{opened['num']}": opened["author"]["name"] for opened in repo.discussions}
        proposes = proposes or authors.get(revision) == account.user
        if not (account.writes(repo.id) or (proposes and account.role == "write")):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")

    def store(self, repo: Repo, path: str, content: bytes) -> File:
        digest, size = sha256_of(content), len(content)
        self.blobs[digest] = content
        lfs = is_lfs(path, content, size)
        if lfs:
            repo.objects.add(digest)
        return File(digest, size, git_oid(lfs_pointer(digest, size) if lfs else content), lfs)

    def write(self, repo: Repo, ref: str, tree: dict[str, File], title: str, message: str, author: str) -> Commit:
        """Add a commit to a ref."""
        oid = hashlib.sha1(f"{next(self._numbers)} {repo.id} {title}".encode()).hexdigest()
        repo.commits[oid] = Commit(oid, repo.refs.get(ref), title, message, author, now(), tree)
        repo.refs[ref] = oid
        return repo.commits[oid]

    def sign(self, repo: Repo, path: str) -> str:
        """The signed URL of a path of the storage."""
        signed = f"{path}?signature={secrets.token_hex(8)}"
        self.signed[signed] = repo
        return self.storage_url + signed
