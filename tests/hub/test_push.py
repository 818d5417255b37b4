"""Commits of `push_subnet_to_hub` and `hf-whittle push`: everything at once, and nothing private."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from fixtures_run import make_recipe, write_modules
from huggingface_hub import CommitInfo, ModelCard
from safetensors.torch import load
from small_models import settings_of
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    SearchResult,
    SubnetConfig,
    SubnetModelCardData,
    extract_subnet,
    push_subnet_to_hub,
    save_student,
)
from hf_whittle.cli import main
from hf_whittle.errors import CheckpointError, HubError, RecipeError, VocabularyError
from hf_whittle.files.text import write_json, write_text
from hf_whittle.hub.publication import publication_of_folder
from hf_whittle.hub.push import settings_of_sizes
from hf_whittle.hub.recipes import publishable
from hf_whittle.record.lineage import Lineage
from hf_whittle.record.results import Results
from hf_whittle.run import run

STUDENT = {"config.json", "generation_config.json", "model.safetensors", "subnet.json", "results.json", "README.md"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
CODE = {
    "configuration_whittle_gpt_neox.py",
    "modeling_whittle_gpt_neox.py",
    "whittle_configuration.py",
    "whittle_modeling.py",
}
SEARCH = {"search.json", "candidates.jsonl", "search.png", "pareto.png", "architecture.png"}
SOMEONES = {"notes.txt": b"mine\n", "extra/model.safetensors": b"\1" * 600, "extra/modeling_x.py": b"x = 1\n"}
LM_EVAL = {
    "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01}},
    "n-shot": {"arc_easy": 0},
    "config": {"model_args": "pretrained=/home/me/student"},
}


def card_of(hub, name="me/student"):
    return ModelCard(hub.published(name)["README.md"].decode())


def requests(hub, method, part=""):
    return [request for request in hub.requests if request.method == method and part in request.path]


def sharded(model, folder, size="20KB"):
    """The files of a model in several shards, without anything of ours."""
    model.save_pretrained(folder, max_shard_size=size)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy_of_student(stock_folder, tmp_path):
    """The folder of a student that a test may change."""
    return Path(shutil.copytree(stock_folder, tmp_path / "student"))


@pytest.fixture
def base(hub, teacher_folder):
    """The teacher on the Hub, published by somebody else."""
    files = {path.name: path.read_bytes() for path in teacher_folder.iterdir()}
    return hub.add_repo("someone/base", {**files, "README.md": b"---\nlicense: apache-2.0\nlanguage:\n- en\n---\n"})


# Files and commits


@pytest.mark.usefixtures("drawn_before")
def test_everything_is_published_in_one_commit(any_hub, teacher_folder, found, tokenizer):
    student = extract_subnet(teacher_folder, found.best)
    commit = push_subnet_to_hub(student, "me/student", search_result=found, tokenizer=tokenizer)
    files, commits = any_hub.published("me/student"), any_hub.commits("me/student")
    assert [each.title for each in commits] == ["Upload a student of hf_whittle", "initial commit"]
    assert isinstance(commit, CommitInfo) and commit.oid == commits[0].oid and commit.oid in commit.commit_url
    assert set(files) == STUDENT | TOKENIZER | CODE | SEARCH
    assert set(json.loads(files["config.json"])["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert SubnetConfig.from_dict(json.loads(files["subnet.json"])) == found.best
    weights, sent = student.state_dict(), load(files["model.safetensors"])
    weights["embed_out.weight"] = weights.pop("lm_head.weight")
    assert sent.keys() == weights.keys() and all((sent[name] == weights[name]).all() for name in sent)
    assert files["pareto.png"].startswith(b"\x89PNG") and files["candidates.jsonl"].count(b"\n") == 4


def test_a_stock_student_comes_without_code(hub, stock_student):
    push_subnet_to_hub(stock_student, "me/student")
    files = hub.published("me/student")
    assert set(files) == STUDENT
    assert "auto_map" not in json.loads(files["config.json"]) and b"trust_remote_code" not in files["README.md"]


def test_a_folder_is_published_as_the_student_in_memory_is(hub, uneven_student, found, tokenizer, tmp_path):
    save_student(uneven_student, tmp_path, search_result=found, tokenizer=tokenizer, max_shard_size="20KB")
    (tmp_path / "optimizer.pt").write_bytes(b"state")
    (tmp_path / "checkpoint-7").mkdir()
    push_subnet_to_hub(tmp_path, "me/student")
    files = hub.published("me/student")
    shards = {name for name in files if name.startswith("model-0000")}
    assert len(shards) > 2
    assert set(files) == STUDENT - {"model.safetensors"} | TOKENIZER | CODE | SEARCH | shards | {
        "model.safetensors.index.json"
    }
    push_subnet_to_hub(uneven_student, "me/student", search_result=found, tokenizer=tokenizer, max_shard_size="20KB")
    assert hub.published("me/student") == files and len(hub.commits("me/student")) == 2


def test_an_unchanged_second_push_makes_no_commit_and_uploads_nothing(any_hub, stock_folder):
    first = push_subnet_to_hub(stock_folder, "me/student")
    any_hub.requests.clear()
    second = push_subnet_to_hub(stock_folder, "me/student", commit_message="again")
    assert second.oid == first.oid and len(any_hub.commits("me/student")) == 2
    assert requests(any_hub, "PUT") + requests(any_hub, "POST", "/commit/") == []


def test_a_branch_a_message_and_a_private_repository(hub, stock_folder, warnings):
    options = {"commit_message": "first", "commit_description": "try", "private": True}
    push_subnet_to_hub(stock_folder, "student", revision="trial", **options)
    assert hub.repo("me/student").private and set(hub.published("me/student")) == set()
    assert set(hub.published("me/student", revision="trial")) == STUDENT | TOKENIZER
    commit = hub.commits("me/student", revision="trial")[0]
    assert (commit.title, commit.message) == ("first", "try")
    push_subnet_to_hub(stock_folder, "me/student", private=True)
    assert "me/student exists already; its visibility stays as it is" in warnings()


def test_arguments_that_do_not_go_together_are_an_error(hub, stock_folder, tokenizer, found):
    with pytest.raises(ValueError, match="a pull request is made on main, got revision='dev'"):
        push_subnet_to_hub(stock_folder, "me/student", create_pr=True, revision="dev")
    for known in ({"tokenizer": tokenizer}, {"search_result": found}):
        with pytest.raises(ValueError, match="go with a student in memory; a folder has its own files"):
            push_subnet_to_hub(stock_folder, "me/student", **known)
    assert not hub.repos


def test_a_tokenizer_with_tokens_that_the_student_lacks_is_an_error(hub, tokenizer, tmp_path):
    config = AutoConfig.for_model("llama", **settings_of("llama", vocab_size=280))
    student = AutoModelForCausalLM.from_config(config)
    message = "has 300 tokens, the model only 280 embeddings; use the model's own tokenizer, which prune_tokenizer"
    with pytest.raises(VocabularyError, match=message):
        push_subnet_to_hub(student, "me/student", tokenizer=tokenizer)
    with pytest.raises(VocabularyError, match=message):
        save_student(student, tmp_path / "student", tokenizer=tokenizer)
    assert not (tmp_path / "student").exists()
    save_student(student, tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(VocabularyError, match=message):
        push_subnet_to_hub(tmp_path / "student", "me/student")
    (tmp_path / "student" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged: .*; save the tokenizer again"):
        push_subnet_to_hub(tmp_path / "student", "me/student")
    assert not hub.repos


# Repositories that hold something


def test_other_weights_of_the_same_architecture_need_no_overwrite(hub, stock_folder, copy_of_student):
    push_subnet_to_hub(stock_folder, "me/student")
    hub.add_commit(hub.repo("me/student"), SOMEONES)
    before = hub.published("me/student")
    model = AutoModelForCausalLM.from_pretrained(copy_of_student)
    next(model.parameters()).data += 1
    model.save_pretrained(copy_of_student)
    push_subnet_to_hub(copy_of_student, "me/student")
    after = hub.published("me/student")
    assert {name for name in after if after[name] != before.get(name)} == {"model.safetensors"}
    assert len(hub.commits("me/student")) == 4 and set(after) == set(before)


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt_neox", {"hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size"}),
        ("gpt2", {"n_embd", "n_layer", "n_head", "head_dim", "n_inner"}),
        ("whittle_llama", {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                           "intermediate_size"}),
    ],
)  # fmt: skip
def test_sizes_that_tell_models_apart_are_those_of_their_architecture(model_type, sizes):
    assert set(settings_of_sizes({"model_type": model_type})) == sizes


MODELS = {
    "of other sizes": lambda stock, folder: sharded(stock, folder),
    "of another kind": lambda stock, folder: {
        "config.json": GPT2Config().to_json_string().encode(),
        "pytorch_model.bin": b"\2" * 600,
        "vocab.json": b"{}\n",
        "special_tokens_map.json": b"{}\n",
    },
    "with code": lambda stock, folder: {
        "config.json": b'{"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X"}}\n',
        "configuration_x.py": b"x = 1\n",
        "modeling_x.py": b"x = 2\n",
        "model.safetensors": b"\3" * 600,
    },
    "that is nothing but weights": lambda stock, folder: {"model.safetensors": b"\4" * 600},
    "with an unreadable configuration": lambda stock, folder: {"config.json": b"{"},
    "of adapters": lambda stock, folder: {
        "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}\n',
        "adapter_model.safetensors": b"\5" * 600,
    },
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_of_another_architecture_is_replaced_only_if_asked(hub, stock, stock_folder, tmp_path, make):
    """Its files are removed then, and all others stay."""
    before = {**make(stock, tmp_path), **SOMEONES}
    hub.add_repo("me/student", before)
    with pytest.raises(HubError, match=r"me/student holds a model of another architecture .* overwrite=True"):
        push_subnet_to_hub(stock_folder, "me/student")
    assert hub.published("me/student") == before
    push_subnet_to_hub(stock_folder, "me/student", overwrite=True)
    assert set(hub.published("me/student")) == STUDENT | TOKENIZER | set(SOMEONES)
    assert {name: hub.published("me/student")[name] for name in SOMEONES} == SOMEONES
    assert len(hub.commits("me/student")) == 2


def test_a_repository_without_a_model_needs_no_overwrite(hub, stock_folder):
    hub.add_repo("me/student", {**SOMEONES, "README.md": b"# To come\n"})
    push_subnet_to_hub(stock_folder, "me/student")
    assert set(hub.published("me/student")) == STUDENT | TOKENIZER | set(SOMEONES)


# The card


EXTRACTIONS = {
    "from files": lambda subnet, **hub: extract_subnet("someone/base", subnet, **hub),
    "of a super-network": lambda subnet, **hub: extract_subnet(
        GPTNeoXSuperNetForCausalLM.from_pretrained("someone/base", **hub), subnet
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("extracted", EXTRACTIONS.values(), ids=EXTRACTIONS)
def test_license_and_language_are_those_of_the_commit_of_the_base_model(hub, base, tmp_path, warnings, extracted):
    last = hub.add_commit(base, {"README.md": b"---\nlicense: mit\n---\n"})
    student = extracted(SubnetConfig(16, 2, 2, 32), revision=last.parent)
    save_student(student, tmp_path)
    push_subnet_to_hub(tmp_path, "me/student")
    data = card_of(hub).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "someone/base")
    assert data.base_model_relation == "finetune" and "license" not in warnings()
    assert json.loads(hub.published("me/student")["results.json"])["supernet"]["commit"] == last.parent
    push_subnet_to_hub(student, "me/student", card_data=SubnetModelCardData(license="cc-by-4.0"))
    assert card_of(hub).data.license == "cc-by-4.0"
    push_subnet_to_hub(extracted(SubnetConfig(16, 2, 2, 32)), "me/student")
    assert card_of(hub).data.license == "mit" and last.oid in hub.published("me/student")["results.json"].decode()


def test_a_license_that_is_not_known_is_left_out_with_a_warning(hub, stock_folder, warnings):
    push_subnet_to_hub(stock_folder, "me/student")
    data = card_of(hub).data.to_dict()
    assert not {"license", "language", "base_model"} & set(data)
    assert "the card states no license" in warnings()


def test_a_card_is_rendered_for_the_repository_unless_it_was_changed_by_hand(hub, copy_of_student, warnings):
    card = copy_of_student / "README.md"
    rendered = card.read_text()
    push_subnet_to_hub(copy_of_student, "me/student")
    assert 'from_pretrained("me/student")' in card_of(hub).text and card.read_text() == rendered
    card.write_text(rendered.replace("## Limitations", "## What it is for\n\nTests.\n\n## Limitations"))
    push_subnet_to_hub(copy_of_student, "me/student", card_data=SubnetModelCardData(license="mit"))
    assert hub.published("me/student")["README.md"] == card.read_bytes()
    assert "was written by hand and is published as it is, without the card_data given" in warnings()


# Paths and tokens


@pytest.mark.slow
@pytest.mark.usefixtures("base")
def test_the_folder_of_a_run_is_published_without_a_path_of_this_machine(hub, teacher_folder, tmp_path):
    known = {"teacher": teacher_folder, "texts": write_modules(tmp_path / "texts"), "output_dir": tmp_path / "out"}
    run(make_recipe(**known, supernet="someone/base"))
    search = SearchResult.load(tmp_path / "out")
    search.settings["algorithm"]["archives"] = [str(tmp_path / "earlier")]
    search.save_summary(tmp_path / "out")
    more = {"teacher_store": f"{tmp_path}/logits", "training": {"resume_from_checkpoint": f"{tmp_path}/old"}}
    more["supernet_options"] = {"device_map": {"": "disk"}, "offload_folder": f"{tmp_path}/offload"}
    make_recipe(**known, supernet="someone/base", **more).save(tmp_path / "out" / "recipe.yaml")
    write_json(tmp_path / "lm.json", LM_EVAL)
    push_subnet_to_hub(tmp_path / "out", "me/student", lm_eval=tmp_path / "lm.json")
    files = hub.published("me/student")
    assert set(files) - CODE == STUDENT | TOKENIZER | SEARCH | {"recipe.yaml", "training.png", "lm_eval.json"}
    texts = {name: text.decode() for name, text in files.items() if not name.endswith((".png", ".safetensors"))}
    private = tempfile.gettempdir(), str(Path(__file__).parents[2]), "/home/"
    assert {name: path for name, text in texts.items() for path in private if path in text} == {}
    recipe = yaml.safe_load(texts["recipe.yaml"])
    assert (recipe["teacher"], recipe["supernet"]) == (f"./{teacher_folder.name}", "someone/base")
    assert (recipe["data"]["files"], recipe["teacher_store"]) == (["./*.txt"], "./logits")
    assert json.loads(texts["lm_eval.json"]) == {name: LM_EVAL[name] for name in ("results", "n-shot")}
    assert SearchResult.from_pretrained("me/student").evaluations == search.evaluations
    data = card_of(hub).data
    assert (data.license, data.base_model) == ("apache-2.0", "someone/base")
    assert {result.metric_type for result in data.eval_results} == {"perplexity", "acc"}


def test_a_recipe_of_several_sources_is_published_without_a_path_of_this_machine(tmp_path):
    sources = [{"files": [f"{tmp_path}/a/*.txt"]}, {"dataset": str(tmp_path)}, {"dataset": "someone/text"}]
    write_text(tmp_path / "recipe.yaml", yaml.safe_dump({"data": {"sources": sources}}))
    published = publishable(tmp_path / "recipe.yaml")
    assert [next(iter(source.values())) for source in yaml.safe_load(published)["data"]["sources"]] == [
        ["./*.txt"], f"./{tmp_path.name}", "someone/text"
    ]  # fmt: skip


def test_the_folder_of_an_extraction_is_published(hub, teacher_folder, stock_folder, stock_student, tmp_path):
    extract_subnet(teacher_folder, stock_student.subnet, tmp_path)
    push_subnet_to_hub(tmp_path, "me/extracted")
    push_subnet_to_hub(stock_folder, "me/student")
    extracted, saved = hub.published("me/extracted"), hub.published("me/student")
    assert set(extracted) == STUDENT | TOKENIZER
    assert {name for name in saved if extracted[name] != saved[name]} <= {"README.md", "tokenizer_config.json"}


@pytest.mark.parametrize("key, value", [("push_to_hub", True), ("hub_token", "hf_secret"), ("hub_model_id", "me/x")])
def test_a_recipe_takes_no_token_and_publishes_nothing(tmp_path, key, value):
    with pytest.raises(RecipeError, match=rf"training.{key}: a run is published when it is done") as caught:
        make_recipe("someone/base", tmp_path, tmp_path, training={key: value})
    assert "hf_secret" not in str(caught.value)


# The command


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_name_that_no_repository_has_is_an_error_of_a_dry_run_too(hub, copy_of_student, capsys, options):
    assert main(["push", str(copy_of_student), "my student", *options]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "'my student' is no name of a repository: " in shown.err and hub.requests == []


def test_a_dry_run_shows_files_sizes_and_card_and_sends_nothing(hub, copy_of_student, capsys):
    before = {path.name: path.read_bytes() for path in copy_of_student.iterdir()}
    assert main(["push", str(copy_of_student), "me/student", "--dry-run", "--license", "mit"]) == 0
    shown = capsys.readouterr().out
    listed = [line.split() for line in shown.split("\n\n")[0].splitlines()]
    sizes = {words[0]: int(words[-2].replace(",", "")) for words in listed}
    assert set(sizes) == STUDENT | TOKENIZER | {str(len(STUDENT | TOKENIZER))}
    assert sizes["model.safetensors"] == len(before["model.safetensors"])
    assert "Nothing was sent" in shown and hub.requests == []
    assert {path.name: path.read_bytes() for path in copy_of_student.iterdir()} == before
    assert main(["push", str(copy_of_student), "me/student", "--license", "mit"]) == 0
    assert {name: len(content) for name, content in hub.published("me/student").items()}.items() <= sizes.items()
    assert hub.published("me/student")["README.md"].decode() in shown


def test_the_command_publishes_and_prints_where(hub, stock_folder, capsys):
    options = [
        "--private",
        "--revision",
        "dev",
        "--commit-message",
        "first",
        "--license",
        "mit",
        "--language",
        "en",
        "de",
    ]
    assert main(["push", str(stock_folder), "me/student", *options]) == 0
    commit = hub.commits("me/student", revision="dev")[0]
    assert capsys.readouterr().out.strip() == f"Published: {hub.url}/me/student/commit/{commit.oid}"
    assert hub.repo("me/student").private and commit.title == "first"
    card = ModelCard(hub.published("me/student", revision="dev")["README.md"].decode())
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    assert main(["push", str(stock_folder), "me/student", "--create-pr"]) == 0
    assert capsys.readouterr().out.strip() == f"Published: {hub.url}/me/student/discussions/1"


def test_an_error_of_the_command_is_one_line_and_exit_status_1(hub, stock_folder, tmp_path, capsys):
    hub.add_repo("me/student", {"config.json": b'{"model_type": "gpt2"}\n'})
    for folder, message in ((stock_folder, "holds a model of another architecture"), (tmp_path, "holds no student")):
        assert main(["push", str(folder), "me/student"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("hf-whittle: error: ") and message in error and error.count("\n") == 1
    assert main(["push", str(stock_folder), "me/student", "--overwrite"]) == 0


def test_the_command_takes_a_branch_or_a_pull_request(hub, stock_folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["push", str(stock_folder), "me/student", "--create-pr", "--revision", "dev"])
    assert caught.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_results_of_another_program_are_not_published(hub, copy_of_student):
    write_json(copy_of_student / "results.json", {"path": str(copy_of_student)})
    push_subnet_to_hub(copy_of_student, "me/student")
    assert "results.json" not in hub.published("me/student") and Lineage.load(copy_of_student).results == Results()


def test_a_publication_reads_the_results_once(stock_folder, monkeypatch):
    read, load = [], Results.load
    monkeypatch.setattr(Results, "load", lambda folder: read.append(folder) or load(folder))
    publication = publication_of_folder(stock_folder, "me/student")
    assert read == [stock_folder.resolve()] and "extracted from" in publication.card
