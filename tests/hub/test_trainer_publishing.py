"""Commits of a `DistillationTrainer`: their files, their times, and training that goes on if the Hub refuses them."""

import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hub.server import OTHER, READ, WRITE
from huggingface_hub import ModelCard, snapshot_download
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_whittle import DistillationConfig, DistillationTrainer, SubnetConfig, extract_subnet, push_subnet_to_hub
from hf_whittle.errors import CheckpointError, HubError

STOCK = SubnetConfig(16, [0, 2, 4], 2, 32)
REPO = "me/student"
CARD = "README.md"
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
CODE = {
    "configuration_whittle_gpt_neox.py",
    "modeling_whittle_gpt_neox.py",
    "whittle_configuration.py",
    "whittle_modeling.py",
}
ADAPTERS = {"adapter_config.json", "adapter_model.safetensors"}
OTHERS = {"tokenizer.json", "tokenizer_config.json", "results.json", "subnet.json"}
FILES = {".gitattributes", CARD} | OTHERS
RESUMING = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
PUBLISHING = {"push_to_hub": True, "hub_model_id": REPO, "hub_always_push": True}
SAVING = PUBLISHING | {"save_strategy": "steps", "save_steps": 2}
pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return AutoModelForCausalLM.from_pretrained(teacher_folder)


@pytest.fixture
def student(teacher):
    return extract_subnet(teacher, STOCK)


@pytest.fixture
def make_trainer(teacher, student, tokenizer, tmp_path):
    """A function that makes a trainer of four steps; `changes` are those of its arguments."""

    def build(model=student, teacher_model=teacher, peft_config=None, **changes):
        values = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "logging_steps": 2,
            "learning_rate": 1e-3,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return DistillationTrainer(
            model,
            teacher_model,
            DistillationConfig(**values | changes),
            train_dataset=make_blocks(16),
            eval_dataset=make_blocks(4),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return build


def make_blocks(number):
    ids = torch.randint(300, (number, 16), generator=torch.Generator().manual_seed(number))
    return Dataset.from_dict({"input_ids": ids.tolist()})


def trained(trainer):
    trainer.train()
    return trainer


def assert_same_weights(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


def published():
    return AutoModelForCausalLM.from_pretrained(REPO)


def titles(hub, **options):
    return [commit.title for commit in hub.commits(REPO, **options)][::-1][1:]


def card_of(hub):
    return ModelCard(hub.files(REPO)[CARD].decode())


def results_of(hub):
    return json.loads(hub.files(REPO)["results.json"])


HEALED = {"subnet": STOCK, "heal": True, "calibration_dataset": make_blocks(12), "progress": False}
STUDENTS = {
    "stock": ({"subnet": STOCK}, set()),
    "healed": (HEALED, {"healing.json"}),
    "heterogeneous": ({"subnet": SubnetConfig(16, [0, 2], [1, 4], [32, 48])}, CODE),
}


@pytest.mark.slow
@pytest.mark.parametrize("options, more", STUDENTS.values(), ids=STUDENTS)
def test_the_end_of_a_training_is_one_commit(hub, teacher, make_trainer, options, more):
    settings = {"hub_model_id": REPO, "save_strategy": "steps", "save_steps": 2}
    trainer = trained(make_trainer(extract_subnet(teacher, **options), **settings))
    commit, files = trainer.push_to_hub(), hub.files(REPO)
    assert titles(hub) == ["End of training"] and commit.oid == hub.commits(REPO)[0].oid
    assert set(files) == FILES | MODEL | more
    assert json.loads(files["config.json"])["use_cache"] is True and not trainer.model.config.use_cache
    assert_same_weights(published(), trainer.model)
    assert len(AutoTokenizer.from_pretrained(REPO)) == 300


@pytest.mark.slow
def test_the_card_has_the_logged_values(hub, teacher, make_trainer):
    student = extract_subnet(teacher, **HEALED)
    trainer = make_trainer(student, eval_strategy="steps", eval_steps=2, alpha=0.3, hub_model_id=REPO)
    trained(trainer).push_to_hub(license="mit", tags="small", dataset="someone/text")
    results, card, log = results_of(hub), card_of(hub), trainer.state.log_history
    facts = results["student"]
    evaluations = [
        {"step": row["step"], "tokens": row["num_input_tokens_seen"], "perplexity": row["eval_perplexity"]}
        for row in log
        if "eval_loss" in row
    ]
    assert facts["curve"] == evaluations and [row["step"] for row in evaluations] == [2, 4]
    assert (facts["steps"], facts["tokens"], facts["seconds"]) == (4, 4 * 2 * 16, log[-1]["train_runtime"])
    assert facts["parameters"] == student.num_parameters() and results["data"] == {"block_size": 16}
    assert results["teacher"] == results["supernet"] | {"parameters": teacher.num_parameters()}
    assert results["healing"]["perplexity_after"] == student.healing.perplexity_after
    assert "training.png" in hub.files(REPO)
    assert "0.3 x cross-entropy + 0.8 x T² x KL(teacher || student), T = 0.9" in card.text
    assert "128 tokens in blocks of 16" in card.text
    assert ("Before training it was healed" in card.text) == student.healing.is_healed
    assert (card.data.license, card.data.datasets) == ("mit", "someone/text")
    assert {"small", "knowledge-distillation"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value == pytest.approx(evaluations[-1]["perplexity"], abs=1e-4)


@pytest.mark.slow
def test_the_card_names_the_model_that_the_student_was_extracted_from(hub, teacher_folder, make_trainer, monkeypatch):
    files = {path.name: path.read_bytes() for path in teacher_folder.iterdir()}
    hub.add_repo("me/teacher", files | {CARD: b"---\nlicense: mit\n---\n"}, private=True)
    teacher = AutoModelForCausalLM.from_pretrained("me/teacher")
    monkeypatch.delenv("HF_TOKEN")
    trainer = make_trainer(extract_subnet(teacher, STOCK), teacher, hub_model_id=REPO, hub_token=WRITE)
    trained(trainer).push_to_hub()
    source = {"name": "me/teacher", "on_hub": True}  # transformers does not say of which commit it is
    assert results_of(hub)["teacher"] == source | {"parameters": teacher.num_parameters()}
    assert results_of(hub)["supernet"] == source | {"license": "mit"}
    assert (card_of(hub).data.base_model, card_of(hub).data.license) == ("me/teacher", "mit")


@pytest.mark.slow
def test_adapters_of_an_extracted_student_are_published_once_they_are_merged(hub, make_trainer, caplog, tmp_path):
    trainer = trained(make_trainer(peft_config=LoraConfig(r=2), **SAVING))
    assert "not published, training goes on: the adapters in" in caplog.text
    with pytest.raises(CheckpointError, match=r"that is not on the Hub.*DistillationTrainer.merge_adapters\(\)"):
        trainer.push_to_hub()
    assert {path.name for path in (tmp_path / "out").iterdir()} > ADAPTERS
    assert titles(hub) == []
    trainer.merge_adapters()
    trainer.evaluate()
    trainer.push_to_hub()
    assert set(hub.files(REPO)) == FILES | MODEL
    facts = results_of(hub)["student"]["adapters"]
    assert (facts["type"], facts["r"]) == ("LoRA", 2) and facts["parameters"] < trainer.model.num_parameters() / 2
    assert "they are merged into the weights" in card_of(hub).text
    assert_same_weights(published(), trainer.model)


@pytest.mark.slow
def test_adapters_of_a_student_on_the_hub_are_published_as_such(hub, student, make_trainer):
    push_subnet_to_hub(student, "me/base")
    trainer = make_trainer(AutoModelForCausalLM.from_pretrained("me/base"), peft_config=LoraConfig(r=2), **SAVING)
    trained(trainer).push_to_hub()
    trainer.push_to_hub("Nothing has changed")
    assert titles(hub) == [f"Training in progress, step {step}" for step in (2, 4)] + ["End of training"]
    assert set(hub.files(REPO)) == FILES | ADAPTERS
    card = card_of(hub)
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/base")
    assert "Adapters of `me/base`" in card.text and "rank 2" in card.text
    loaded = AutoPeftModelForCausalLM.from_pretrained(REPO)
    torch.testing.assert_close(logits_of(loaded), logits_of(trainer.model))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_strategy_publishes_at_its_times(hub, make_trainer, tmp_path, strategy):
    trainer = trained(make_trainer(hub_strategy=strategy, save_total_limit=1, **SAVING))
    steps = [] if strategy == "end" else [f"Training in progress, step {step}" for step in (2, 4)]
    assert titles(hub) == steps
    beside = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}.get(strategy, [])
    expected = {f"{folder}/{name}" for folder in beside for name in MODEL | OTHERS | RESUMING}
    if strategy != "end":
        assert set(hub.files(REPO)) == FILES | MODEL | expected
        assert_same_weights(published(), trainer.model)
    trainer.push_to_hub()
    assert set(hub.files(REPO)) == FILES | MODEL | expected
    assert titles(hub)[len(steps) :] == ["End of training"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["checkpoint-4"]
    assert "\n# student\n" in card_of(hub).text


@pytest.mark.slow
def test_training_resumes_from_the_checkpoint_on_the_hub(hub, make_trainer, teacher, tmp_path):
    settings = {"hub_strategy": "all_checkpoints", "eval_strategy": "steps", "eval_steps": 2}
    whole = trained(make_trainer(**settings, **SAVING))
    folder = snapshot_download(REPO, allow_patterns="checkpoint-2/*")
    again = make_trainer(extract_subnet(teacher, SubnetConfig(16, [0, 1, 2], 2, 32)), output_dir=str(tmp_path / "b"))
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-6)
    facts, facts_again = (trainer.model.lineage.results.student for trainer in (whole, again))
    assert facts.seconds is not None and facts_again.seconds is None
    assert facts_again.curve[0] == facts.curve[0]


@pytest.fixture
def jobs(monkeypatch):
    """The pushes of a training to the Hub, collected instead of done."""
    jobs = []
    later = SimpleNamespace(run_as_future=lambda work, *arguments: jobs.append((work, *arguments)) or Future())
    monkeypatch.setattr("hf_whittle.hub.trainer._JOBS", later)
    monkeypatch.setattr(DistillationTrainer, "_finish_current_push", lambda self: None)
    return jobs


@pytest.mark.slow
def test_a_checkpoint_may_be_removed_before_it_is_published(any_hub, make_trainer, jobs, tmp_path):
    trained(make_trainer(save_total_limit=1, **SAVING))
    assert not (tmp_path / "out" / "checkpoint-2").exists() and titles(any_hub) == []
    weights = []
    for work, *arguments in jobs:
        work(*arguments)
        weights.append(any_hub.files(REPO)["model.safetensors"])
    assert len(titles(any_hub)) == 2 and weights[0] != weights[1]
    assert weights[1] == (tmp_path / "out" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert not list((tmp_path / "out").glob(".push-*"))


def test_while_a_push_is_under_way_no_other_begins_unless_asked_for(hub, make_trainer, jobs):
    trained(make_trainer(**SAVING | {"hub_always_push": False}))
    assert len(jobs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"status": 403}, {"drop": True, "times": 5}], ids=str)
def test_a_failing_hub_does_not_stop_a_training(hub, make_trainer, caplog, tmp_path, fault):
    trainer = make_trainer(**SAVING)
    hub.fail("POST", "/commit/", **fault)
    trainer.train()
    assert "The checkpoint was not published, training goes on: the" in caplog.text
    assert titles(hub) == ["Training in progress, step 4"]
    trainer.push_to_hub()
    assert titles(hub)[1:] == ["End of training"]
    assert not list((tmp_path / "out").glob(".push-*"))


@pytest.mark.slow
def test_another_architecture_is_an_error_before_training(hub, teacher, make_trainer):
    push_subnet_to_hub(extract_subnet(teacher, SubnetConfig(16, [0, 2], 2, 32)), REPO)
    with pytest.raises(HubError, match=r"of another architecture \(num_hidden_layers 2, the student has 3\)"):
        make_trainer(**PUBLISHING)
    trained(make_trainer(hub_overwrite=True, **PUBLISHING)).push_to_hub()
    assert len(titles(hub)) == 2 and json.loads(hub.files(REPO)["config.json"])["num_hidden_layers"] == 3


@pytest.mark.slow
def test_the_same_architecture_is_published_again(hub, teacher, make_trainer):
    subnet = STUDENTS["heterogeneous"][0]["subnet"]
    push_subnet_to_hub(extract_subnet(teacher, subnet), REPO)
    trained(make_trainer(extract_subnet(teacher, subnet), **PUBLISHING)).push_to_hub("Second")
    assert titles(hub)[1:] == ["Second"]


def test_arguments_of_a_push_take_precedence(hub, make_trainer):
    trainer = trained(make_trainer(hub_model_id="student", hub_token=OTHER))
    job = trainer.push_to_hub("First", blocking=False, token=WRITE, revision="trial", private=True)
    commit = job.result()
    assert isinstance(job, Future) and trainer.hub_model_id == REPO and hub.repo(REPO).private
    assert commit.oid == hub.commits(REPO, "trial")[0].oid
    assert titles(hub, revision="trial") == ["First"] and titles(hub) == []


@pytest.mark.slow
def test_training_arguments_of_the_hub_have_effect(hub, make_trainer, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = make_trainer(hub_token=WRITE, hub_private_repo=True, hub_revision="trial", **SAVING)
    trained(trainer).push_to_hub()
    assert hub.repo(REPO).private and titles(hub) == []
    assert len(titles(hub, revision="trial")) == 3


@pytest.mark.slow
def test_a_token_that_may_not_write_leaves_the_student_in_its_folder(hub, make_trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(HubError, match="the token has no right to write to the model me/student"):
        make_trainer(**PUBLISHING)
    trainer = trained(make_trainer(hub_model_id=REPO))
    with pytest.raises(HubError, match="the token has no right to write to the model me/student"):
        trainer.push_to_hub()
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), trainer.model)
    assert trainer.push_to_hub(token=WRITE).commit_message == "End of training"


@pytest.mark.slow
def test_the_token_is_in_no_log_and_published_nowhere(hub, make_trainer, caplog):
    caplog.set_level("DEBUG")
    trainer = make_trainer(hub_token=WRITE, hub_strategy="all_checkpoints", **SAVING)
    hub.fail("POST", "/commit/", 400)
    trained(trainer).push_to_hub()
    assert WRITE not in caplog.text
    assert not [name for name, content in hub.files(REPO).items() if WRITE.encode() in content]


def test_only_the_first_process_publishes(hub, make_trainer, monkeypatch):
    monkeypatch.setattr(DistillationTrainer, "is_world_process_zero", lambda self: False)
    trainer = trained(make_trainer(**SAVING))
    assert trainer.push_to_hub() is None and not hub.requests


@pytest.mark.slow
def test_a_card_written_by_hand_is_published_as_it_is(hub, make_trainer, tmp_path):
    trainer = trained(make_trainer(**PUBLISHING))
    trainer.create_model_card("en", license="mit", tags=["tiny"], dataset="someone/text")
    path = tmp_path / "out" / CARD
    card = ModelCard.load(path)
    assert (card.data.language, card.data.license, card.data.datasets) == ("en", "mit", "someone/text")
    assert {"tiny", "hf_whittle"} <= set(card.data.tags) and "128 tokens" in card.text
    path.write_text(str(card).replace("128 tokens", "hardly any tokens"))
    trainer.create_model_card(language="de")
    trainer = trained(make_trainer(**SAVING))
    cards = [card_of(hub), trainer.push_to_hub() and card_of(hub)]
    assert all("hardly any tokens" in card.text and card.data.language == "en" for card in cards)


def test_an_evaluation_after_saving_is_on_the_card(make_trainer, tmp_path):
    trainer = trained(make_trainer())
    trainer.save_model()
    perplexity = trainer.evaluate()["eval_perplexity"]
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "out" / CARD).data.eval_results[0].metric_value == pytest.approx(perplexity, 1e-4)
