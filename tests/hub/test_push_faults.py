"""Faults of the Hub: each is a `HubError` with advice, shows no secret, and leaves repository and folder whole."""

import hashlib
import logging
import re
import shutil
import traceback
from pathlib import Path

import pytest
from hub.server import FINE, OTHER, READ, WRITE
from huggingface_hub import HfApi, constants

from hf_whittle import SubnetModelCardData, push_subnet_to_hub
from hf_whittle.errors import CheckpointError, HubError
from hf_whittle.hub import repository

PHASES = {
    "looking": ("GET", "/api/models/me/student$"),
    "making the repository": ("POST", "/api/repos/create"),
    "making the branch": ("POST", "/branch/"),
    "reading the tree": ("GET", "/tree/"),
    "checking the card": ("POST", "/api/validate-yaml"),
    "announcing": ("POST", "/preupload/"),
    "asking for storage": ("POST", "/objects/batch"),
    "storing": ("PUT", "/upload/"),
    "verifying": ("POST", "/objects/verify"),
    "committing": ("POST", "/commit/"),
    "asking for Xet": ("GET", "/xet-write-token/"),
}
TROUBLES = {"unavailable": {"status": 503}, "dropped": {"drop": True}}
SECRETS = (WRITE, READ, OTHER, FINE, "signature=", "Signature=", "Bearer")
ECHO = {"X-Error-Message": f"no, {WRITE}; see https://storage/x?X-Amz-Signature=abc"}


@pytest.fixture
def client(hub, monkeypatch):
    """A function that makes the client upload by Xet, or by LFS."""
    return lambda phase: monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", "Xet" not in phase)


@pytest.fixture
def push(stock_folder):
    """A function that publishes a folder as `me/student`, by default that of the stock student."""
    return lambda folder=stock_folder, name="me/student", **options: push_subnet_to_hub(folder, name, **options)


@pytest.fixture
def logs(warnings, capfd, caplog):
    """A function that returns everything logged or printed so far, and asserts that it contains no secret."""
    caplog.set_level(logging.INFO)

    def given(more=""):
        text = "".join([more, warnings(), *capfd.readouterr()])
        assert [secret for secret in SECRETS if secret in text] == []
        return text

    return given


@pytest.fixture
def refused(hub, push, waits, logs, stock_folder):
    """A function that publishes something the Hub refuses, and returns the error.

    It asserts that no secret is read anywhere, that nothing was committed, and that nothing is lost on disk.
    """

    def contents():
        return {path.name: path.read_bytes() for path in stock_folder.iterdir()}

    def heads():
        return {name: repo.refs.get("refs/heads/main") for name, repo in hub.repos.items()}

    def publish(*student, error=HubError, **options):
        before, there = contents(), heads()
        with pytest.raises(error) as caught:
            push(*student, **options)
        logs("".join(traceback.format_exception(caught.value)))
        assert contents() == before
        new = {name: head for name, head in heads().items() if there.get(name) != head}
        assert all(set(hub.files(name)) == {".gitattributes"} for _, name in new)
        return str(caught.value)

    return publish


def stored(hub, digest):
    """Number of large files that the storage accepted."""
    return sum(request.path.startswith(f"/upload/{digest}") and request.status == 200 for request in hub.requests)


def titles(hub, **where):
    return [commit.title for commit in hub.commits("me/student", **where)]


# Faults that pass, and faults that do not


@pytest.mark.slow_after(7)
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("phase", PHASES)
def test_a_push_goes_on_after_a_fault_that_passes(hub, push, client, waits, logs, phase, trouble):
    client(phase)
    hub.fail(*PHASES[phase], **TROUBLES[trouble])
    revision = "dev" if "branch" in phase else None
    commit = push(revision=revision)
    assert titles(hub, revision=revision or "main") == ["Upload a student of hf_whittle", "initial commit"]
    assert commit.oid == hub.commits("me/student", revision=revision or "main")[0].oid
    assert {0, 503} & {request.status for request in hub.requests} and waits in ([], [1.0])
    assert "/api/models/me/student" in logs()


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "verifying"])  # a file sent once is known
def test_a_fault_that_stays_is_an_error_and_a_later_push_needs_no_repair(
    hub, push, refused, client, waits, phase, trouble
):
    client(phase)
    hub.fail(*PHASES[phase], **TROUBLES[trouble], times=1000)
    revision = "dev" if "branch" in phase else None
    error = refused(revision=revision)
    assert "the model me/student" in error and "run the same again" in error
    assert waits == [1.0, 2.0, 4.0, 8.0]
    hub.mend()
    push(revision=revision)
    assert len(titles(hub, revision=revision or "main")) == 2


def test_after_a_fault_only_what_is_missing_is_uploaded(hub, push, refused, stock_student, tmp_path):
    stock_student.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.safetensors"))
    hub.fail("PUT", shards[1], times=1000)
    refused(tmp_path)
    hub.mend()
    push(tmp_path)
    assert len(shards) > 2 and [stored(hub, digest) for digest in shards] == [1] * len(shards)


@pytest.mark.parametrize("times, seconds", [(1, [7.0]), (3, [7.0] * 3)])
@pytest.mark.parametrize("phase", ["looking", "committing"])
def test_a_push_waits_as_long_as_the_hub_asks(hub, push, waits, phase, times, seconds):
    hub.fail(*PHASES[phase], status=429, headers={"Retry-After": "7"}, times=times)
    push()
    assert waits == seconds and len(titles(hub)) == 2


def test_a_limit_that_stays_is_an_error_with_its_seconds(hub, refused, waits):
    hub.fail(*PHASES["committing"], status=429, headers={"Retry-After": "300"}, times=1000)
    assert "the Hub takes no more requests for 300 s; wait" in refused()
    assert waits == [60.0] * 4


# Answers that are lost


@pytest.fixture
def at_first_wait(monkeypatch, waits):
    """A function that makes something happen when a push first waits."""

    def arrange(happen):
        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 1:
                happen()

        monkeypatch.setattr(repository.time, "sleep", sleep)

    return arrange


@pytest.mark.parametrize("lookup", [0, 1, 3])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_commit_whose_answer_is_lost_is_made_once(hub, push, at_first_wait, waits, trouble, lookup):
    """Even if the Hub does not answer for a while after it."""
    hub.fail(*PHASES["committing"], **TROUBLES[trouble], after=True)
    if lookup:
        at_first_wait(lambda: hub.fail(*PHASES["looking"], **TROUBLES[trouble], times=lookup))
    commit = push()
    assert len(titles(hub)) == 2 and commit.oid == hub.commits("me/student")[0].oid
    assert commit.commit_url == f"{hub.url}/me/student/commit/{commit.oid}" and commit.pr_url is None


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("lookup", ["/discussions", "/revision/", "/paths-info/"])
def test_a_pull_request_whose_answer_is_lost_is_opened_once(hub, push, at_first_wait, trouble, lookup):
    hub.add_repo("someone/student")
    hub.fail(*PHASES["committing"], **TROUBLES[trouble], after=True)
    at_first_wait(lambda: hub.fail("POST" if "paths" in lookup else "GET", lookup, **TROUBLES[trouble]))
    commit = push(name="someone/student", create_pr=True)
    assert [opened["num"] for opened in hub.repo("someone/student").discussions] == [1]
    assert commit.pr_url == f"{hub.url}/someone/student/discussions/1"
    assert commit.oid == hub.commits("someone/student", revision="refs/pr/1")[0].oid


def test_a_commit_with_an_unknown_outcome_is_not_made_again(hub, push, at_first_wait):
    """The error does not claim that it failed, and a later push finds it."""
    hub.fail(*PHASES["committing"], drop=True, after=True)
    at_first_wait(lambda: hub.fail(*PHASES["looking"], times=1000))
    with pytest.raises(HubError, match=r"has not answered since whether it was made; look there") as caught:
        push()
    assert "nothing was published" not in str(caught.value)
    hub.mend()
    assert push().oid == hub.commits("me/student")[0].oid and len(titles(hub)) == 2


def test_a_commit_of_somebody_else_in_between_is_an_error(hub, push, monkeypatch):
    upload = HfApi.preupload_lfs_files

    def interfere(self, *args, **kwargs):
        upload(self, *args, **kwargs)
        hub.add_commit(hub.repo("me/student"), {"notes.txt": b"mine\n"}, "somebody else's")

    monkeypatch.setattr(HfApi, "preupload_lfs_files", interfere)
    with pytest.raises(HubError, match=r"somebody committed to the model me/student meanwhile; .* run the same again"):
        push()
    assert titles(hub) == ["somebody else's", "initial commit"]
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", WRITE)
    push()
    assert len(titles(hub)) == 3 and hub.files("me/student")["notes.txt"] == b"mine\n"


# Tokens


@pytest.mark.slow_after(8)
@pytest.mark.parametrize(
    "token, message",
    [
        ("hf_" + 34 * "x", "the Hub does not know the token, .* run `hf auth login`, or set HF_TOKEN"),
        (None, "the Hub does not know the token, .* run `hf auth login`, or set HF_TOKEN"),
        (READ, "the token has no right to write to the model me/student; use one with write access"),
        (OTHER, "the token has no right to write to the model me/student; use one with write access"),
        (FINE, "the token has no right to write to the model me/student; use one with write access"),
    ],
)
@pytest.mark.parametrize("given", ["HF_TOKEN", "token="])
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_that_may_not_is_an_error(hub, refused, monkeypatch, token, message, given, exists):
    if exists:
        hub.add_repo("me/student", {".gitattributes": b""})
    monkeypatch.delenv("HF_TOKEN")
    if given == "HF_TOKEN" and token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = refused(**({} if given == "HF_TOKEN" else {"token": token or False}))
    assert re.search(message, error), error


def test_a_name_without_an_owner_needs_a_token(hub, refused, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in refused(name="student")
    monkeypatch.setenv("HF_TOKEN", "hf_" + 34 * "x")
    assert "the Hub does not know the token" in refused(name="student")


def test_a_pull_request_needs_no_right_to_write_there(any_hub, push, refused):
    any_hub.add_repo("someone/student", {"notes.txt": b"theirs\n"})
    assert "the token has no right to write to the model someone/student" in refused(name="someone/student")
    commit = push(name="someone/student", create_pr=True)
    assert commit.pr_num == 1 and set(any_hub.files("someone/student")) == {"notes.txt"}
    assert {"notes.txt", "model.safetensors"} < set(any_hub.files("someone/student", revision="refs/pr/1"))


def test_a_gated_model_is_not_read_past_its_gate(hub, refused):
    hub.add_repo("someone/student", {"config.json": b"{}\n"}, gated="manual")
    assert "is gated and the token's owner has no access; ask for it" in refused(name="someone/student", create_pr=True)


# Refusals


@pytest.mark.parametrize(
    "phase, status, headers, message",
    [
        ("announcing", 401, {}, "the Hub does not know the token"),
        ("announcing", 403, {}, "the token has no right to write"),
        ("announcing", 404, {"X-Error-Code": "RepoNotFound"}, "does not exist, or it is private"),
        ("announcing", 404, {"X-Error-Code": "RevisionNotFound"}, "has no such branch or commit"),
        ("asking for storage", 403, {}, "the token has no right to write"),
        ("storing", 400, {}, r"the Hub refused the model me/student \(400\)"),
        ("verifying", 404, {}, r"the Hub refused the model me/student \(404\)"),
        ("committing", 400, {}, r"the Hub refused the model me/student \(400\)"),
        ("committing", 409, {}, r"the Hub refused the model me/student \(409\)"),
        ("committing", 412, {}, "somebody committed to the model me/student meanwhile"),
        ("committing", 413, {}, r"the Hub refused the model me/student \(413\)"),
        ("asking for Xet", 401, {}, "the Hub does not know the token"),
        ("asking for Xet", 403, {}, "the token has no right to write"),
    ],
)
def test_a_refusal_is_an_error_at_once(hub, refused, client, waits, phase, status, headers, message):
    client(phase)
    hub.fail(*PHASES[phase], status=status, headers={**ECHO, **headers}, times=1000)
    error = refused()
    assert re.search(message, error), error
    assert waits == []


@pytest.mark.parametrize("repo_id", ["me/a/b", "me/.student", "me/stu dent"])
def test_a_name_that_is_not_allowed_is_an_error(hub, refused, repo_id):
    assert f"{repo_id!r} is no name of a repository" in refused(name=repo_id)
    assert hub.requests == []


def test_a_repository_that_somebody_makes_at_the_same_time_is_used(hub, push, waits):
    hub.add_repo("me/student")
    hub.fail(*PHASES["looking"], status=404, headers={"X-Error-Code": "RepoNotFound"})
    push()
    assert 409 in [request.status for request in hub.requests] and len(titles(hub)) == 2 and waits == []


def test_a_revision_that_is_not_there_is_an_error(hub, push, refused):
    push()
    assert "has no such branch or commit" in refused(revision="refs/pr/7")


def test_metadata_that_the_hub_refuses_are_an_error(hub, refused):
    error = refused(card_data=SubnetModelCardData(license="no such"))
    assert "the Hub refused the card of me/student" in error and '"license" must be' in error


def test_a_hub_that_cannot_be_reached_offline_is_an_error(hub, refused, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the Hub cannot be reached in offline mode; unset HF_HUB_OFFLINE" in refused()


# Folders without a whole student


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(text):
    """A function that replaces the weights by an index without shards."""

    def put(folder):
        pickle(folder)
        (folder / "model.safetensors.index.json").write_text(text)

    return put


BROKEN = {
    "has no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there is neither model.safetensors"),
    "has truncated weights": (truncate, "is truncated or corrupt"),
    "has pickled weights alone": (pickle, "there is neither model.safetensors"),
    "lacks a shard": (index('{"weight_map": {"x": "model-1.safetensors"}}'), "model-1.safetensors is missing"),
    "has an index of nothing": (index("{}"), "model.safetensors.index.json names no shards"),
    "has an index that is none": (index("{"), "model.safetensors.index.json is not JSON"),
    "has no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "has a configuration that is none": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json is not JSON",
    ),
    "has a search that is none": (lambda folder: (folder / "search.json").write_text("{"), "search.json is not JSON"),
    "lacks its code": (
        lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "configuration_x.X"}}'),
        "configuration_x.py is missing",
    ),
    "is not there": (shutil.rmtree, "is not a folder; give the folder of a student"),
}


@pytest.mark.parametrize("break_it, message", BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_published_is_whole(hub, refused, stock_folder, tmp_path, break_it, message):
    folder = Path(shutil.copytree(stock_folder, tmp_path / "student"))
    break_it(folder)
    assert message in refused(folder, error=CheckpointError)
    assert hub.requests == []
