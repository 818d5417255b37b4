"""Checkpoints appear whole: at no moment does a partial one have the name of a checkpoint."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixtures_training import make_blocks, make_supernet
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_whittle.errors import CheckpointError
from hf_whittle.files.locks import LOCK_FILE, file_lock
from hf_whittle.training.checkpoints import WholeCheckpoints, last_checkpoint, whole_checkpoints

TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
}
DAMAGE = {
    "trainer_state.json is missing or truncated": lambda folder: (folder / "trainer_state.json").unlink(),
    "trainer_state.json is missing or truncated ": lambda folder: cut(folder / "trainer_state.json"),
    "model.safetensors is truncated": lambda folder: cut(folder / "model.safetensors"),
    "there are no weights": lambda folder: (folder / "model.safetensors").unlink(),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_trainer(kind, folder, **changes):
    return kind(
        model=make_supernet(),
        args=TrainingArguments(output_dir=str(folder), **{**TRAINING, **changes}),
        train_dataset=[{"input_ids": row, "labels": row} for row in make_blocks()["input_ids"]],
        eval_dataset=[{"input_ids": row, "labels": row} for row in make_blocks(4, seed=1)["input_ids"]],
    )


def train(kind, folder, resume=None, **changes):
    trainer = make_trainer(kind, folder, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a training, and its weights."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(WholeCheckpoints, folder).model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"save_total_limit": 1},
        {"save_total_limit": 2, "load_best_model_at_end": True},
        {"save_total_limit": 1, "load_best_model_at_end": True, "learning_rate": 1.0},
        {"save_strategy": "best", "save_total_limit": 1},
        {"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
        {"save_only_model": True},
    ],
    ids=["all", "last", "best of two", "best is the first", "best alone", "epochs", "without optimizer"],
)
def test_folder_is_as_the_plain_trainer_leaves_it(tmp_path, changes):
    best = {}
    for kind in (Trainer, WholeCheckpoints):
        folder = tmp_path / kind.__name__
        trainer = train(kind, folder, **changes)
        best[kind] = trainer.state.best_model_checkpoint.replace(kind.__name__, "")
        for checkpoint in folder.glob("checkpoint-*"):
            written = json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
            assert written is None or (folder / written).parent == folder
    assert names(tmp_path / "Trainer") == names(tmp_path / "WholeCheckpoints")
    assert best[Trainer] == best[WholeCheckpoints]


@pytest.mark.parametrize("trouble", DAMAGE)
def test_a_checkpoint_cut_off_is_passed_over_and_written_anew(trained, tmp_path, trouble, caplog):
    whole, weights = trained
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    DAMAGE[trouble](folder / "checkpoint-6")
    (folder / "checkpoint-6" / "left over").write_text("by an earlier training")
    assert last_checkpoint(folder) == str(folder / "checkpoint-4")
    assert [path.name for path in whole_checkpoints(folder)] == ["checkpoint-4", "checkpoint-2"]
    with pytest.raises(CheckpointError, match=f"is incomplete: {trouble.strip()}.*takes the last whole"):
        train(WholeCheckpoints, folder, resume=str(folder / "checkpoint-6"))
    resumed = train(WholeCheckpoints, folder, resume=True)
    assert resumed._initial_global_step == 4
    torch.testing.assert_close(resumed.model.state_dict(), weights, rtol=0, atol=0)
    assert names(folder) == names(whole)


def test_a_shard_that_is_missing_is_no_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-2"
    make_supernet().save_pretrained(folder, max_shard_size="20KB")
    (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(folder)
    min(folder.glob("model-*.safetensors")).unlink()
    assert last_checkpoint(tmp_path) is None


def test_without_any_checkpoint_it_is_the_error_of_the_plain_trainer(tmp_path):
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        train(WholeCheckpoints, tmp_path, resume=True)


def test_a_training_anew_into_the_folder_replaces_its_checkpoints(trained, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(trained[0], folder)
    trainer = train(WholeCheckpoints, folder, learning_rate=0.1)
    assert names(folder) == names(trained[0])
    saved = load_file(folder / "checkpoint-6" / "model.safetensors")
    name, weight = next(iter(trainer.model.state_dict().items()))
    assert torch.equal(saved[name], weight)


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "_partial-checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "_partial-checkpoint-8").mkdir()
    train(WholeCheckpoints, tmp_path, max_steps=2)
    assert {Path(name).parts[0] for name in names(tmp_path)} == {"checkpoint-2"}


def test_a_training_that_writes_nothing_leaves_alone_what_another_writes(tmp_path):
    (tmp_path / "_partial-checkpoints" / "checkpoint-2").mkdir(parents=True)
    train(WholeCheckpoints, tmp_path, save_strategy="no", max_steps=1)
    assert names(tmp_path) == ["_partial-checkpoints", "_partial-checkpoints/checkpoint-2"]


def test_training_goes_on_from_a_checkpoint_that_was_about_to_be_replaced(tmp_path):
    train(WholeCheckpoints, tmp_path, max_steps=2)
    (tmp_path / "checkpoint-2").rename(tmp_path / "_partial-checkpoint-2.before")
    assert train(WholeCheckpoints, tmp_path, resume=True)._initial_global_step == 2


def test_adapters_with_a_name_are_weights(tmp_path):
    adapters = tmp_path / "checkpoint-2" / "mine"
    adapters.mkdir(parents=True)
    (adapters.parent / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
    save_file({"weight": torch.zeros(1)}, adapters / "adapter_model.safetensors")
    assert last_checkpoint(tmp_path) == str(adapters.parent)


def test_trials_of_one_search_for_settings_may_run_at_once(tmp_path, monkeypatch):
    """Each trial writes its own folder."""
    trainer = make_trainer(WholeCheckpoints, tmp_path, max_steps=2, eval_strategy="no")
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    monkeypatch.setattr(trainer, "_hp_search_setup", lambda trial: None)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)  # without optuna
    with file_lock(tmp_path / "run-1" / LOCK_FILE, "run 1"):
        trainer.train(trial=SimpleNamespace(number=3, params={}))
    assert "run-3/checkpoint-2/model.safetensors" in names(tmp_path)


def test_what_is_no_ones_business_is_not_uploaded(tmp_path, monkeypatch):
    """`Trainer` uploads a folder that is locked and may contain the next, partial checkpoint."""
    uploaded = []

    class Hub:
        def upload_folder(self, folder_path, ignore_patterns=None, **kwargs):
            here = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
            uploaded.extend(filter_repo_objects(here, ignore_patterns=ignore_patterns))
            return SimpleNamespace(done=lambda: True)

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = make_trainer(WholeCheckpoints, tmp_path, max_steps=2)
    trainer.hub_model_id, trainer.push_in_progress = "me/net", None
    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr(trainer, "init_hf_repo", lambda *args, **kwargs: None)
    save_optimizer = trainer._save_optimizer_and_scheduler

    def save(folder):
        trainer._save_optimizer_and_scheduler = save_optimizer
        save_optimizer(folder)
        assert (tmp_path / LOCK_FILE).is_file()
        Hub().upload_folder(str(tmp_path), ["_*", "checkpoint-*"])  # as in a push that had to wait

    trainer._save_optimizer_and_scheduler = save
    trainer.train()
    assert set(uploaded) == {"config.json", "generation_config.json", "model.safetensors", "training_args.bin"}
