"""The Hub of these tests as the unmodified clients see it."""

import hashlib
import json

import httpx2
import pytest
from datasets import load_dataset
from hub.server import FINE, OTHER, READ, WRITE
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, GPTNeoXConfig

WEIGHTS = bytes(range(256)) * 300
FILES = {
    "config.json": b'{"a": 1}\n',
    "model.safetensors": WEIGHTS,
    "pictures/front.png": b"\x89PNG\r\n\x1a\n\0picture",
}
CARD = "---\nlicense: mit\ntags:\n- one\n---\n# A card\n"


def additions(files):
    return [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]


def push(files=FILES, repo_id="me/x", **settings):
    return HfApi(token=settings.pop("token", None)).create_commit(
        repo_id, additions(files), commit_message="push", **settings
    )


def statuses(hub, method, part):
    return [request.status for request in hub.requests if request.method == method and part in request.path]


def pushed(hub, **where):
    return {path: content for path, content in hub.files("me/x", **where).items() if path != ".gitattributes"}


# Repositories and commits


@pytest.mark.parametrize("type", ["model", "dataset"])
def test_a_new_repository_is_where_its_url_says(hub, type):
    url = HfApi().create_repo("me/x", repo_type=type, private=True)
    assert (url.repo_id, url.repo_type, url.endpoint) == ("me/x", type, hub.url)
    info = HfApi().repo_info("me/x", repo_type=type)
    assert (info.private, info.sha) == (True, hub.commits("me/x", type=type)[0].oid)
    assert [sibling.rfilename for sibling in info.siblings] == [".gitattributes"]


def test_a_repository_that_exists_is_an_error_unless_it_may(hub):
    HfApi().create_repo("me/x")
    assert HfApi().create_repo("me/x", exist_ok=True).repo_id == "me/x"
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo("me/x")


def test_a_repository_is_deleted_and_changes_its_settings(hub):
    HfApi().create_repo("me/x")
    HfApi().update_repo_settings("me/x", private=True, gated="auto")
    assert (hub.repo("me/x").private, hub.repo("me/x").gated) == (True, "auto")
    HfApi().delete_repo("me/x")
    assert not HfApi().repo_exists("me/x")


def test_a_commit_has_the_files_as_they_were_sent(any_hub):
    HfApi().create_repo("me/x")
    info = push()
    assert pushed(any_hub) == FILES
    head, first = any_hub.commits("me/x")
    assert (head.oid, head.parent, head.title, head.author) == (info.oid, first.oid, "push", "me")
    assert {path for path, file in head.tree.items() if file.lfs} == {"model.safetensors", "pictures/front.png"}
    assert head.tree["model.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert statuses(any_hub, "POST", "/commit/") == [200]
    xet = statuses(any_hub, "GET", "/xet-write-token/")
    assert (xet, statuses(any_hub, "PUT", "/upload/")) in [([200], []), ([], [200, 200])]


def test_a_commit_of_files_on_disk(any_hub, tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    HfApi().create_repo("me/x")
    HfApi().create_commit("me/x", [CommitOperationAdd(path, tmp_path / path) for path in FILES], commit_message="push")
    assert pushed(any_hub) == FILES


def test_files_that_have_not_changed_make_no_commit(any_hub):
    HfApi().create_repo("me/x")
    first, again = push(), push()
    assert again.oid == first.oid and len(any_hub.commits("me/x")) == 2
    assert statuses(any_hub, "POST", "/commit/") == [200]
    push({**FILES, "config.json": b"{}"})
    assert pushed(any_hub) == {**FILES, "config.json": b"{}"}


def test_a_commit_deletes_and_copies(any_hub):
    any_hub.add_repo("me/x", {**FILES, "old/a.txt": b"a", "old/b.txt": b"b"})
    copies = [
        CommitOperationCopy("model.safetensors", "again.safetensors"),
        CommitOperationCopy("config.json", "c.json"),
    ]
    deletions = [CommitOperationDelete("old/"), CommitOperationDelete("pictures/front.png")]
    HfApi().create_commit("me/x", [*copies, *deletions, *additions({"new.txt": b"new"})], commit_message="tidy")
    kept = {name: FILES[name] for name in ("config.json", "model.safetensors")}
    added = {"again.safetensors": WEIGHTS, "c.json": FILES["config.json"], "new.txt": b"new"}
    assert pushed(any_hub) == {**kept, **added}


def test_deleting_a_missing_file_is_an_error(hub):
    hub.add_repo("me/x", FILES)
    with pytest.raises(EntryNotFoundError):
        HfApi().create_commit("me/x", [CommitOperationDelete("none.txt")], commit_message="tidy")
    assert len(hub.commits("me/x")) == 1


def test_a_commit_knows_its_parent(hub):
    hub.add_repo("me/x", FILES)
    parent = hub.commits("me/x")[0].oid
    push({"a.txt": b"a"}, parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412"):
        push({"b.txt": b"b"}, parent_commit=parent)
    assert pushed(hub) == {**FILES, "a.txt": b"a"}


def test_someone_else_proposes_a_commit(any_hub):
    any_hub.add_repo("me/x", {"config.json": b"{}"})
    info = push(token=OTHER, create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert pushed(any_hub) == {"config.json": b"{}"} and pushed(any_hub, revision="refs/pr/1") == FILES
    push({"more.txt": b"more"}, token=OTHER, revision="refs/pr/1")
    assert pushed(any_hub, revision="refs/pr/1") == {**FILES, "more.txt": b"more"}
    (discussion,) = HfApi().get_repo_discussions("me/x")
    assert (discussion.author, discussion.title, discussion.is_pull_request) == ("other", "push", True)
    assert HfApi().get_discussion_details("me/x", 1).events[0].oid == info.oid
    assert [ref.name for ref in HfApi().list_repo_refs("me/x", include_pull_requests=True).pull_requests]


def test_an_empty_pull_request_takes_commits(any_hub):
    any_hub.add_repo("someone/x", {"config.json": b"{}"})
    opened = HfApi().create_pull_request("someone/x", "A title", description="what it is for")
    push(repo_id="someone/x", revision=opened.git_reference)
    assert HfApi().get_discussion_details("someone/x", 1).events[0].content == "what it is for"
    assert any_hub.files("someone/x", "refs/pr/1") == FILES
    assert any_hub.files("someone/x") == {"config.json": b"{}"}


def test_branches_and_tags(hub):
    hub.add_repo("me/x", FILES)
    api, first = HfApi(), hub.commits("me/x")[0].oid
    api.create_branch("me/x", branch="a/branch")
    push({"a.txt": b"a"}, revision="a/branch")
    api.create_tag("me/x", tag="v1", revision="a/branch")
    api.create_branch("me/x", branch="a/branch", exist_ok=True)
    refs = api.list_repo_refs("me/x")
    assert {branch.name: branch.target_commit for branch in refs.branches}["main"] == first
    assert [tag.ref for tag in refs.tags] == ["refs/tags/v1"]
    assert "a.txt" not in pushed(hub) and pushed(hub, revision="v1")["a.txt"] == b"a"
    assert [commit.title for commit in api.list_repo_commits("me/x", revision="v1")] == ["push", "initial commit"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("me/x", tag="v1")
    api.delete_tag("me/x", tag="v1")
    api.delete_branch("me/x", branch="a/branch")
    assert list(hub.repo("me/x").refs) == ["refs/heads/main"]


def test_a_branch_that_is_not_there_is_an_error(any_hub):
    any_hub.add_repo("me/x")
    with pytest.raises(RevisionNotFoundError):
        push(revision="none")
    with pytest.raises(RevisionNotFoundError):
        HfApi().create_tag("me/x", tag="v1", revision="none")
    assert len(any_hub.commits("me/x")) == 1


# Reading


def test_a_tree_of_many_pages_is_read_to_its_end(hub):
    hub.add_repo("me/x", {**FILES, **{f"folder/{i}.txt": b"%d" % i for i in range(7)}})
    hub.page_size = 3
    found = {entry.path: entry for entry in HfApi().list_repo_tree("me/x", recursive=True)}
    assert found.keys() == {*hub.files("me/x"), "folder", "pictures"}
    assert found["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert found["model.safetensors"].size == len(WEIGHTS)
    assert {entry.path for entry in HfApi().list_repo_tree("me/x", "folder")} == {f"folder/{i}.txt" for i in range(7)}
    assert len(statuses(hub, "GET", "cursor=")) == 5
    infos = HfApi().get_paths_info("me/x", ["config.json", "folder", "none"])
    assert [info.path for info in infos] == ["config.json", "folder"]
    with pytest.raises(EntryNotFoundError):
        list(HfApi().list_repo_tree("me/x", "none"))


def test_a_second_download_asks_for_no_content(hub):
    hub.add_repo("me/x", FILES)
    for path, content in FILES.items():
        with open(hf_hub_download("me/x", path), "rb") as file:
            assert file.read() == content
    assert statuses(hub, "GET", "/blob/") == [200, 200]
    before = len(hub.requests)
    for path in FILES:
        hf_hub_download("me/x", path)
    assert {request.method for request in hub.requests[before:]} == {"HEAD"}
    assert all(agent.startswith("unknown/None; hf_hub/") for *_, agent in hub.requests)


def test_a_download_of_all_is_all(hub, tmp_path):
    hub.add_repo("me/x", FILES, type="dataset")
    folder = snapshot_download("me/x", repo_type="dataset", local_dir=tmp_path / "all")
    for path, content in FILES.items():
        with open(f"{folder}/{path}", "rb") as file:
            assert file.read() == content


def test_a_missing_file_is_an_error(hub):
    hub.add_repo("me/x", FILES)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "none.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/x", "config.json", revision="none")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/none", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/none", "config.json", token=False)


def test_a_range_of_a_file_is_the_one_asked_for(hub):
    hub.add_repo("me/x", FILES)
    url = f"{hub.url}/me/x/resolve/main/model.safetensors"
    for asked, part in (("bytes=10-19", WEIGHTS[10:20]), ("bytes=70000-", WEIGHTS[70000:]), ("bytes=-5", WEIGHTS[-5:])):
        response = httpx2.get(url, headers={"Range": asked}, follow_redirects=True)
        assert (response.status_code, response.content) == (206, part)
    assert httpx2.get(url, headers={"Range": "bytes=99999-"}, follow_redirects=True).status_code == 416


# Who may do what


def test_accounts(hub):
    assert HfApi().whoami()["name"] == "me"
    roles = {token: HfApi().whoami(token)["auth"]["accessToken"]["role"] for token in (WRITE, READ, OTHER, FINE)}
    assert roles == {WRITE: "write", READ: "read", OTHER: "write", FINE: "fineGrained"}
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami("hf_bad")
    assert not any(token in str(hub.requests) for token in (WRITE, READ, OTHER, FINE, "hf_bad"))


@pytest.mark.parametrize("token", [READ, OTHER, FINE, False, "hf_bad"])
def test_a_token_without_the_right_writes_nothing(any_hub, token):
    any_hub.add_repo("me/x", {"config.json": b"{}"})
    api = HfApi(token=token)
    attempts = [
        lambda: api.create_commit("me/x", additions({"a.txt": b"a"}), commit_message="push"),
        lambda: api.create_commit("me/x", additions(FILES), commit_message="push"),
        lambda: api.create_branch("me/x", branch="b"),
        lambda: api.create_tag("me/x", tag="b"),
        lambda: api.update_repo_settings("me/x", private=True),
        lambda: api.delete_repo("me/x"),
        lambda: api.auth_check("me/x", write=True),
    ]
    for attempt in attempts:
        with pytest.raises(HfHubHTTPError) as raised:
            attempt()
        assert raised.value.response.status_code == (401 if token in (False, "hf_bad") else 403)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("me/new")
    assert pushed(any_hub) == {"config.json": b"{}"} and len(any_hub.commits("me/x")) == 1
    assert list(any_hub.repo("me/x").refs) == ["refs/heads/main"] and list(any_hub.repos) == [("model", "me/x")]


def test_a_fine_grained_token_writes_to_what_it_was_made_for(any_hub):
    any_hub.add_repo("me/allowed")
    HfApi(token=FINE).create_repo("me/allowed", exist_ok=True)
    push(repo_id="me/allowed", token=FINE)
    assert any_hub.files("me/allowed") == FILES


def test_an_organization_of_the_user(any_hub):
    HfApi().create_repo("lab/x")
    push(repo_id="lab/x")
    assert any_hub.files("lab/x").items() >= FILES.items()
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("someone/x")


@pytest.mark.parametrize("token", [OTHER, False])
def test_a_private_repository_is_not_found_by_others(hub, token):
    hub.add_repo("me/x", FILES, private=True)
    for read in (lambda: HfApi().model_info("me/x", token=token), lambda: snapshot_download("me/x", token=token)):
        with pytest.raises(RepositoryNotFoundError):
            read()
    with pytest.raises(RepositoryNotFoundError):
        push({"a.txt": b"a"}, token=token)
    hf_hub_download("me/x", "config.json", token=READ)


@pytest.mark.parametrize(("token", "status"), [(None, 403), (False, 401)])
def test_a_gated_repository_shows_no_content(hub, token, status):
    hub.add_repo("someone/x", FILES, gated="manual")
    assert HfApi().model_info("someone/x", token=token).gated == "manual"
    for path in ("config.json", "model.safetensors"):
        with pytest.raises(GatedRepoError) as raised:
            hf_hub_download("someone/x", path, token=token)
        assert raised.value.response.status_code == status
    hub.repo("someone/x").readers.add("me")
    hf_hub_download("someone/x", "config.json")


# Errors


def test_large_files_are_checked(hub):
    hub.add_repo("me/x")
    api = HfApi()
    operation = CommitOperationAdd("model.safetensors", WEIGHTS)
    operation.upload_info.sha256 = hashlib.sha256(b"another").digest()
    with pytest.raises(RuntimeError) as raised:
        api.create_commit("me/x", [operation], commit_message="push")
    assert isinstance(raised.value.__cause__, BadRequestError)
    assert hub.files("me/x") == {} and not hub.repo("me/x").objects


def test_a_large_file_that_was_not_sent_is_a_breach(hub):
    hub.add_repo("me/x")
    operation = CommitOperationAdd("model.safetensors", WEIGHTS)
    operation._is_uploaded, operation._upload_mode = True, "lfs"
    with pytest.raises(BadRequestError):
        HfApi().create_commit("me/x", [operation], commit_message="push")
    assert len(hub.commits("me/x")) == 1
    assert "not uploaded" in hub.breaches.pop()


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/api/models/me/x/nothing/of/it", "no such route"),
        ("GET", f"/api/models/me/x?token={WRITE}", "a token outside"),
        ("POST", "/api/models/me/x/commit/main", "not ndjson"),
        ("POST", "/api/models/me/x/commit/refs/pr/1", "no such route"),
        ("POST", "/api/models/me/x/preupload/main", "cannot be answered"),
        ("POST", "/me/x.git/info/lfs/objects/batch", "cannot be answered"),
    ],
)
def test_a_breach_is_noted(hub, method, path, message):
    hub.add_repo("me/x")
    response = httpx2.request(method, hub.url + path, headers={"Authorization": f"Bearer {WRITE}"})
    assert response.status_code in (400, 404)
    (breach,) = hub.breaches
    assert message in breach and WRITE not in breach
    hub.breaches.clear()


def test_the_storage_takes_what_is_signed_and_no_token(hub):
    url = f"{hub.storage_url}/upload/{hashlib.sha256(b'abc').hexdigest()}/3"
    assert httpx2.put(url, content=b"abc").status_code == 403
    assert httpx2.put(url, content=b"abc", headers={"Authorization": f"Bearer {WRITE}"}).status_code == 400
    assert "a token sent to the storage" in hub.breaches.pop()
    assert not hub.blobs


@pytest.mark.parametrize("path", ["../out.txt", "a//b.txt", ".git/config", ""])
def test_a_path_that_leads_elsewhere_is_a_breach(hub, path):
    hub.add_repo("me/x")
    value = {"path": path, "content": "", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "push"}}, {"key": "file", "value": value}]
    headers = {"Authorization": f"Bearer {WRITE}", "Content-Type": "application/x-ndjson"}
    body = "\n".join(map(json.dumps, lines))
    assert httpx2.post(f"{hub.url}/api/models/me/x/commit/main", content=body, headers=headers).status_code == 400
    assert hub.files("me/x") == {} and hub.breaches.pop()


@pytest.mark.parametrize("trouble", [{"status": 503}, {"status": 429, "headers": {"Retry-After": "1"}}, {"drop": True}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/preupload/"), ("POST", "objects/batch"), ("PUT", "^/upload/")])
def test_the_client_uploads_again_after_trouble(hub, method, path, trouble):
    hub.add_repo("me/x")
    hub.fail(method, path, times=2, **trouble)
    push()
    assert pushed(hub) == FILES and len(hub.commits("me/x")) == 2


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"status": 503}, HfHubHTTPError),
        ({"status": 429, "headers": {"Retry-After": "1"}}, HfHubHTTPError),
        ({"drop": True}, httpx2.RemoteProtocolError),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_commit_is_sent_once(hub, trouble, error, after):
    hub.add_repo("me/x")
    hub.fail("POST", r"/commit/", after=after, **trouble)
    with pytest.raises(error):
        push()
    assert pushed(hub) == (FILES if after else {}) and len(hub.commits("me/x")) == 1 + after
    assert len(statuses(hub, "POST", "/commit/")) == 1
    push()
    assert pushed(hub) == FILES and len(hub.commits("me/x")) == 2
    assert len(statuses(hub, "PUT", "/upload/")) == 2


def test_an_upload_that_fails_for_good_leaves_the_repository_as_it_was(hub):
    hub.add_repo("me/x")
    hub.fail("PUT", "^/upload/", times=6)
    with pytest.raises(RuntimeError) as raised:
        push({"model.safetensors": WEIGHTS})
    assert isinstance(raised.value.__cause__, HfHubHTTPError)
    assert len(hub.commits("me/x")) == 1 and not statuses(hub, "POST", "/commit/")


def test_a_hub_that_is_down_is_an_error_unless_the_cache_has_it(hub):
    hub.add_repo("me/x", FILES)
    path = hf_hub_download("me/x", "config.json")
    hub.fail("HEAD", "/resolve/", times=99)
    assert hf_hub_download("me/x", "config.json") == path
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("me/x", "model.safetensors")


# Cards, collections


def test_a_card_is_validated_and_pushed(hub):
    hub.add_repo("me/x")
    card = ModelCard(CARD)
    card.validate()
    card.push_to_hub("me/x")
    assert hub.files("me/x")["README.md"].decode() == CARD
    assert HfApi().model_info("me/x").card_data.license == "mit"
    assert ModelCard.load("me/x").data.tags == ["one"]


INVALID = {
    "license": "license: my-own",
    "tags": "tags: one",
    "name": "base_model: /home/me/teacher",
    "index": "model-index:\n- name: x\n  results:\n  - task: {type: text-generation}",
    "YAML": "tags: [one",
    "list": "- one",
}


@pytest.mark.parametrize("metadata", INVALID.values(), ids=INVALID)
def test_a_card_that_is_not_valid_is_refused(hub, metadata):
    hub.add_repo("me/x")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push({"README.md": f"---\n{metadata}\n---\n# A card\n".encode()})
    assert hub.files("me/x") == {} and not statuses(hub, "POST", "/commit/")


def test_a_card_validates_itself(hub):
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: my-own\n---\n").validate()


def test_a_card_without_metadata_is_a_warning(hub):
    hub.add_repo("me/x")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push({"README.md": b"# A card"})


def test_a_collection_takes_an_item_once(hub):
    hub.add_repo("me/x")
    hub.add_collection("me/students-0123456789abcdef01234567")
    (slug,) = hub.collections
    for _ in range(2):
        found = HfApi().add_collection_item(slug, "me/x", "model", note="small", exists_ok=True)
    assert [(item.item_id, item.item_type, item.note) for item in found.items] == [("me/x", "model", "small")]
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().add_collection_item(slug, "me/x", "model")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().add_collection_item(slug, "me/x", "model", token=OTHER)
    with pytest.raises(HfHubHTTPError, match="404"):
        HfApi().add_collection_item("me/none-0", "me/x", "model")


# Other clients


def test_transformers_reads_a_configuration(hub, tmp_path):
    GPTNeoXConfig(hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    hub.add_repo("me/x", {"config.json": (tmp_path / "config.json").read_bytes()})
    assert AutoConfig.from_pretrained("me/x").hidden_size == 64


def test_transformers_pushes_and_loads_a_model(any_hub, stock):
    stock.push_to_hub("me/x")
    loaded = type(stock).from_pretrained("me/x")
    assert loaded.num_parameters() == stock.num_parameters()
    assert any_hub.commits("me/x")[0].tree["model.safetensors"].lfs


def test_datasets_reads_lines(hub):
    lines = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(5))
    hub.add_repo("me/data", {"train.jsonl": lines.encode()}, type="dataset")
    assert load_dataset("me/data", split="train")["text"] == [f"line {i}" for i in range(5)]


def test_another_process_has_the_same_hub(hub, run_python):
    hub.add_repo("me/x", FILES)
    script = "from huggingface_hub import HfApi; print(HfApi().model_info('me/x').sha)"
    assert run_python(script).strip() == hub.commits("me/x")[0].oid
