"""Facts that `RecordTraining` attaches to a student of a plain `Trainer`."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from fixtures_training import make_blocks, make_supernet, make_trainer
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    RecordTraining,
    SubnetConfig,
    extract_subnet,
    push_subnet_to_hub,
    save_student,
)
from hf_whittle.cost import num_parameters
from hf_whittle.record.data import DataFacts
from hf_whittle.record.facts import Environment, HealingFacts, SourceFacts, TeacherFacts, TrainingFacts
from hf_whittle.record.lineage import Lineage
from hf_whittle.record.results import Results

SUBNET = SubnetConfig(16, [0, 2], 2, 32)
HEALING = HealingFacts(is_healed=False, perplexity_before=3.0, perplexity_after=4.0, tokens=8, held_out_tokens=2)
STALE = TrainingFacts(targets="stale")


@pytest.fixture
def student():
    return extract_subnet(make_supernet(), SUBNET)


def recorded(student, folder, callback=None, **changes):
    """The results that a short training attaches to a student, as in `results.json`, and the trainer."""
    trainer = make_trainer(folder, [callback or RecordTraining()], student, max_steps=4, **changes)
    trainer.train()
    return results_of(student), trainer


def results_of(student):
    return student.lineage.results.to_dict()


def test_a_plain_trainer_leaves_its_facts_on_the_student(student, tmp_path):
    settings = {"eval_steps": 2, "eval_on_start": True, "include_num_input_tokens_seen": "all"}
    results, trainer = recorded(student, tmp_path, **settings)
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    facts, arguments = results["student"], results["student"]["arguments"]
    assert [(point["step"], point["tokens"]) for point in facts["curve"]] == [(0, 0), (2, 128), (4, 256)]
    assert [point["perplexity"] for point in facts["curve"]] == pytest.approx(
        [torch.tensor(row["eval_loss"]).double().exp().item() for row in rows], rel=1e-4
    )
    assert (facts["steps"], facts["tokens"], facts["parameters"]) == (4, 256, student.num_parameters())
    assert facts["seconds"] == trainer.state.log_history[-1]["train_runtime"]
    assert (arguments["max_steps"], arguments["learning_rate"], arguments["train_batch_size"]) == (4, 1e-2, 4)
    assert not {"alpha", "beta", "temperature"} & set(arguments)
    assert results["data"] == {"block_size": 16} and results["environment"] == facts["environment"]
    assert json.loads(json.dumps(results)) == results


def test_the_card_of_the_student_says_them(hub, student, tmp_path):
    results, _ = recorded(student, tmp_path)
    push_subnet_to_hub(student, "me/student")
    files = hub.files("me/student")
    card = ModelCard(files["README.md"].decode())
    assert json.loads(files["results.json"]) == results and json.loads(files["config.json"])["use_cache"] is True
    assert "## How it was trained\n\nTrained for 4 steps in blocks of 16 with learning rate 0.01" in card.text
    assert "batches of 4 blocks and seed 3" in card.text and "biases of its super-network" in card.text
    perplexity = results["student"]["curve"][-1]["perplexity"]
    assert card.data.eval_results[0].metric_value == pytest.approx(perplexity, abs=1e-4)
    assert "knowledge-distillation" not in card.data.tags


def test_without_an_evaluation_there_is_no_curve(student, tmp_path):
    results, _ = recorded(student, tmp_path, eval_strategy="no")
    assert not {"curve", "tokens"} & set(results["student"])
    save_student(student, tmp_path / "student")
    card = (tmp_path / "student" / "README.md").read_text()
    assert "This student has not been evaluated." in card and "## Results" not in card


class Other(torch.utils.data.Dataset):
    """Rows of a form of their own."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(make_blocks())


UNEVEN = Dataset.from_dict({"input_ids": [row["input_ids"][: 16 - 8 * (n % 2)] for n, row in enumerate(make_blocks())]})
DATA = {
    "a stream": make_blocks().to_iterable_dataset(),
    "a stream of torch": Stream(),
    "tensors": Other([torch.tensor(row["input_ids"]) for row in make_blocks()]),
    "texts": Other(["some text"] * 24),
    "another name": Other([{"ids": row["input_ids"]} for row in make_blocks()]),
    "rows of other lengths": UNEVEN,
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_blocks_of_no_one_size_are_not_recorded(student, tmp_path, data):
    def collate(rows):
        ids = [row.get("input_ids", row.get("ids")) if isinstance(row, dict) else row for row in rows]
        ids = torch.stack([torch.arange(8) if isinstance(row, str) else torch.as_tensor(row)[:8] for row in ids])
        return {"input_ids": ids, "labels": ids}

    trainer = make_trainer(tmp_path, [RecordTraining()], student, max_steps=2, remove_unused_columns=False)
    trainer.train_dataset, trainer.data_collator = data, collate
    trainer.train()
    assert "data" not in results_of(student) and results_of(student)["student"]["steps"] == 2


def test_batches_without_a_data_set_do_not_stop_a_training(student, tmp_path, monkeypatch):
    batch = {name: torch.tensor(make_blocks(4)["input_ids"]) for name in ("input_ids", "labels")}
    monkeypatch.setattr(Trainer, "get_train_dataloader", lambda self: [batch] * 2)
    results, _ = recorded(student, tmp_path)
    assert results["student"]["steps"] == 4 and "data" not in results


def test_a_module_without_a_configuration_trains(tmp_path):
    class Bigrams(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(61, 61)

        def forward(self, input_ids, labels):
            logits = self.table(input_ids)[:, :-1]
            return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())}

    model = Bigrams()
    results, _ = recorded(model, tmp_path, eval_strategy="no")
    assert results["student"]["parameters"] == 61 * 61


def test_a_teacher_is_recorded_where_it_is_given(student, tmp_path):
    teacher = make_supernet()
    results, _ = recorded(student, tmp_path, RecordTraining(teacher))
    assert results["teacher"] == {"parameters": num_parameters(teacher.config)}


def test_facts_of_an_earlier_training_make_room(student, tmp_path):
    making = {"supernet": SourceFacts(name="a"), "healing": HEALING}
    stale = {"teacher": TeacherFacts(name="stale"), "student": STALE, "baseline": STALE}
    stale |= {"data": DataFacts(dataset="stale", block_size=1), "environment": Environment(hardware="stale")}
    Lineage(results=Results(**stale, **making)).attach(student)
    results, _ = recorded(student, tmp_path)
    assert results["supernet"] == {"name": "a"} and results["healing"] == HEALING.to_dict()
    assert set(results) == {*making, "student", "data", "environment"} and "stale" not in json.dumps(results)


def test_a_resumed_training_leaves_the_seconds_out(student, tmp_path):
    whole, _ = recorded(student, tmp_path, save_steps=2)
    again = extract_subnet(make_supernet(), SUBNET)
    trainer = make_trainer(tmp_path, [RecordTraining()], again, max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert set(whole["student"]) - set(results_of(again)["student"]) == {"seconds"}
    assert results_of(again)["student"]["steps"] == 4


def test_adapters_are_recorded_and_stay_so_when_they_are_merged(student, tmp_path):
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["query_key_value", "dense"])
    adapted = get_peft_model(student, config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    trainer = make_trainer(tmp_path, [RecordTraining()], adapted, max_steps=2)
    trainer.train()
    facts = {"type": "LoRA", "parameters": trained, "r": 2, "alpha": 6}
    assert results_of(student)["student"]["adapters"] == facts
    assert results_of(student)["student"]["parameters"] == num_parameters(student.config)
    trainer.model = adapted.merge_and_unload().requires_grad_()
    trainer.evaluate()
    assert results_of(trainer.model)["student"]["adapters"] == facts
    trainer.train()
    assert "adapters" not in results_of(student)["student"]


def making(lineage):
    return lineage.subnet, json.loads(json.dumps(lineage.healing.to_dict())), lineage.results.supernet


def make_distillation(student, folder, **changes):
    settings = {"max_steps": 4, "learning_rate": 1e-3, "save_steps": 2, "save_total_limit": 1, "report_to": "none"}
    args = DistillationConfig(str(folder), alpha=1.0, beta=0.0, use_cpu=True, disable_tqdm=True, **settings | changes)
    return DistillationTrainer(student, args=args, train_dataset=make_blocks())


@pytest.mark.slow
def test_what_is_saved_of_a_student_knows_where_it_comes_from_through_every_training(tmp_path):
    supernet = make_supernet()
    supernet.config._name_or_path = "a/supernet"
    healing = {"heal": True, "calibration_dataset": make_blocks(8), "progress": False}
    student = extract_subnet(supernet, SUBNET, **healing)
    expected = making(Lineage.of(student))
    first = make_distillation(student, tmp_path)
    first.train()
    first.save_model(tmp_path / "saved")
    checkpoint = tmp_path / "checkpoint-4"
    assert making(Lineage.load(tmp_path / "saved")) == making(Lineage.load(checkpoint)) == expected
    again = make_distillation(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=str(checkpoint))
    again.save_model(tmp_path / "again")
    lineage = Lineage.load(tmp_path / "again")
    assert not checkpoint.exists() and making(lineage) == expected and lineage.results.student.steps == 6


def test_a_student_loaded_from_a_folder_needs_it_no_more(student, tmp_path):
    folder = tmp_path / "student"
    save_student(student, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    recorded(loaded, tmp_path)
    shutil.rmtree(folder)
    assert Lineage.of(loaded).subnet == SUBNET
