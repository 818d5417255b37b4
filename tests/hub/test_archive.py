"""Archives of searches on the Hub: data sets that anyone can read, and extract other subnets with."""

import re

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, DatasetCardData

from hf_whittle import SearchResult, extract_subnet, push_search_archive
from hf_whittle.errors import CheckpointError, HubError, OutputError, WhittleError

FILES = {"README.md", "search.json", "candidates.jsonl", "search.png", "pareto.png", "architecture.png"}


def published(hub, revision="main"):
    return hub.published("me/archive", revision, "dataset")


def commits(hub):
    return hub.commits("me/archive", type="dataset")


@pytest.mark.slow
def test_an_archive_is_published_in_one_commit(any_hub, found):
    commit = push_search_archive(found, "me/archive", private=True)
    assert set(published(any_hub)) == FILES
    titles = [each.title for each in commits(any_hub)]
    assert titles == ["Upload the archive of a search of hf_whittle", "initial commit"]
    assert commit.oid == commits(any_hub)[0].oid and any_hub.repo("me/archive", "dataset").private
    assert push_search_archive(found, "me/archive").oid == commit.oid and len(commits(any_hub)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_before")
def test_a_folder_is_published_as_the_search_in_memory_is(hub, found, tmp_path):
    found.save(tmp_path)
    push_search_archive(tmp_path, "archive", revision="first", commit_message="try")
    push_search_archive(found, "me/archive", revision="first")
    assert [commit.title for commit in hub.commits("me/archive", "first", "dataset")] == ["try", "initial commit"]
    assert set(published(hub)) == set() and set(published(hub, "first")) == FILES


@pytest.mark.usefixtures("drawn_before")
def test_a_published_search_is_read_back(hub, found, teacher_folder):
    first = push_search_archive(found, "me/archive")
    hub.add_commit(hub.repo("me/archive", "dataset"), {"candidates.jsonl": b""}, "lost")
    result = SearchResult.from_pretrained("me/archive", repo_type="dataset", revision=first.oid)
    assert result.evaluations == found.evaluations and result.settings == found.settings
    assert result.best == found.best and result.pareto_front() == found.pareto_front()
    worst = result.top(4)[-1]
    assert worst != found.best
    student = extract_subnet(teacher_folder, worst, progress=False)
    assert student.num_parameters() == max(result.answers, key=lambda each: each.fitness).parameters
    assert SearchResult.from_pretrained("me/archive", repo_type="dataset").evaluations == []
    with pytest.raises(CheckpointError, match="'me/archive' is not a folder, and could not be read from the Hub"):
        SearchResult.from_pretrained("me/archive")


@pytest.mark.usefixtures("drawn_before")
def test_rows_of_the_dataset_are_the_evaluations(hub, found):
    push_search_archive(found, "me/archive")
    rows = load_dataset("me/archive", split="train")
    assert rows["fitness"] == [each.fitness for each in found.evaluations]
    assert rows["parameters"] == [each.parameters for each in found.evaluations]
    assert rows["digest"] == [each.subnet.digest for each in found.evaluations]
    described = re.findall(r"`(\w+)`", published(hub)["README.md"].decode().split("| --- | --- |")[1])
    assert set(described) - {"null", "SubnetConfig"} == set(rows.column_names)


@pytest.mark.usefixtures("drawn_before")
def test_the_card_is_one_the_hub_takes_and_its_snippet_runs(hub, found):
    push_search_archive(found, "me/archive", card_data=DatasetCardData(license="mit", tags=["mine"]))
    card = DatasetCard.load("me/archive")
    assert (card.data.license, card.data.tags) == ("mit", ["mine", "hf_whittle", "neural-architecture-search"])
    assert f"All {len(found.evaluations)} evaluations of a search" in card.text
    card.validate()
    names = {}
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], names)
    assert names["result"].best == found.best and len(names["candidates"]) == len(found.evaluations)


@pytest.mark.usefixtures("drawn_before")
def test_an_archive_contains_no_path_of_this_machine(hub, found, tmp_path):
    settings = {**found.settings, "algorithm": {**found.settings["algorithm"], "archives": [str(tmp_path)]}}
    push_search_archive(SearchResult(settings, found.evaluations), "me/archive")
    texts = [content.decode() for name, content in published(hub).items() if not name.endswith(".png")]
    assert len(texts) == 3 and not any(str(tmp_path) in text or "archives" in text for text in texts)


def test_a_folder_without_a_search_is_an_error(hub, found, tmp_path):
    with pytest.raises(OutputError, match=r"holds no search: search\.json is missing"):
        push_search_archive(tmp_path, "me/archive")
    with pytest.raises(WhittleError, match="there is no best one"):
        push_search_archive(SearchResult(found.settings, []), "me/archive")
    assert hub.requests == []


@pytest.mark.usefixtures("drawn_before")
@pytest.mark.parametrize("phase", [("POST", "/preupload/"), ("POST", "/commit/")])
def test_a_fault_leaves_the_dataset_as_it_was(hub, found, waits, phase):
    hub.fail(*phase, times=1000)
    with pytest.raises(HubError, match="the Hub failed at the dataset me/archive"):
        push_search_archive(found, "me/archive")
    assert published(hub) == {}
    hub.mend()
    hub.fail("POST", "/commit/", drop=True, after=True)
    commit = push_search_archive(found, "me/archive")
    assert commit.commit_url == f"{hub.url}/datasets/me/archive/commit/{commits(hub)[0].oid}"
    assert len(commits(hub)) == 2


@pytest.mark.usefixtures("drawn_before")
def test_metadata_that_the_hub_refuses_are_an_error(hub, found):
    with pytest.raises(HubError, match="the Hub refused the card of me/archive"):
        push_search_archive(found, "me/archive", card_data=DatasetCardData(license="no such"))
    assert published(hub) == {}
