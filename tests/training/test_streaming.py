"""A training on a stream that was interrupted equals one that was not, whatever reads it."""

import json
import shutil

import pytest
import streamed_training
import torch
from fixtures_distillation import make_arguments
from fixtures_processes import on_two_processes
from fixtures_training import make_supernet
from streamed_training import STEPS, make_stream, make_trainer, train

from hf_whittle import SupernetConfig, SupernetTrainer
from hf_whittle.data import streams
from hf_whittle.data.streams import BlockReader
from hf_whittle.errors import DataError
from hf_whittle.training.checkpoints import last_checkpoint


def rows_of(batches):
    return torch.cat(batches)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Batches, weights and logs of a training that was not interrupted."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), dropout=0.2)
    return *train(trainer), trainer.state.log_history


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_an_interrupted_training_equals_a_whole_one(whole, tmp_path, stop):
    batches, weights, logs = whole
    part = make_trainer(tmp_path, stop, dropout=0.2)
    train(part)
    again = make_trainer(tmp_path, dropout=0.2)
    later, resumed = train(again)
    saved = stop // 3 * 3
    assert torch.equal(rows_of(later), rows_of(batches)[8 * saved :])
    torch.testing.assert_close(resumed, weights, rtol=0, atol=1e-6)
    for name in ("epoch", "step", "num_input_tokens_seen"):
        assert [row[name] for row in again.state.log_history] == [row[name] for row in logs]
    assert not again.args.ignore_data_skip


def test_a_training_reads_the_blocks_of_the_mixture_once(whole):
    rows = rows_of(whole[0]).tolist()
    assert len(rows) == 8 * STEPS
    for end in (32, 64):  # of windows
        assert sorted(rows[:end]) == sorted(make_stream().first(end)["input_ids"][:].tolist())


@pytest.mark.slow
def test_resuming_reads_only_what_is_near(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 4)
    train(make_trainer(tmp_path, 9))
    read, original = [], BlockReader._read
    monkeypatch.setattr(BlockReader, "_read", lambda self: read.append(self) or original(self))
    state = json.loads((tmp_path / "checkpoint-9" / "trainer_state.json").read_text())
    place = state["stateful_callbacks"]["BlockStream"]
    assert place["next"] == 72 and place["next"] - place["blocks"] <= 4
    assert len(train(make_trainer(tmp_path))[0]) == 2 and len(read) < 20


@pytest.mark.slow
def test_a_checkpoint_without_a_place_is_resumed_by_reading_again(whole, tmp_path):
    train(make_trainer(tmp_path, 7, dropout=0.2))
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["BlockStream"]
    path.write_text(json.dumps(state))
    later, resumed = train(make_trainer(tmp_path, dropout=0.2))
    assert torch.equal(rows_of(later), rows_of(whole[0])[48:])
    torch.testing.assert_close(resumed, whole[1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_one_process_may_read_for_all(whole, tmp_path):
    one_reads = {"accelerator_config": {"dispatch_batches": True}}
    expected, weights = train(make_trainer(tmp_path / "whole", **one_reads))
    assert torch.equal(rows_of(expected), rows_of(whole[0]))
    train(make_trainer(tmp_path / "part", 7, **one_reads))
    later, resumed = train(make_trainer(tmp_path / "part", **one_reads))
    assert torch.equal(rows_of(later), rows_of(expected)[48:])
    torch.testing.assert_close(resumed, weights, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_supernet_trained_on_a_stream_resumes_exactly(tmp_path):
    def make(folder, stop=STEPS):
        args = make_arguments(SupernetConfig, folder, max_steps=STEPS, save_strategy="steps", save_steps=3)
        trainer = SupernetTrainer(make_supernet(), args, train_dataset=make_stream())
        trainer.stop = stop
        return trainer

    expected, weights = train(make(tmp_path / "whole"))
    train(make(tmp_path / "part", 7))
    later, resumed = train(make(tmp_path / "part"))
    assert torch.equal(rows_of(later), rows_of(expected)[24:])
    torch.testing.assert_close(resumed, weights, rtol=0, atol=1e-6)


def test_the_stream_forgets_what_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 2)
    trainer = make_trainer(tmp_path, save_strategy="no")
    train(trainer)
    places = [place["blocks"] for place in trainer.train_dataset._places]
    assert places[0] >= 8 * STEPS - 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataloader_num_workers": 2}, "got dataloader_num_workers=2; set it to 0"),
        ({"auto_find_batch_size": True}, "leave auto_find_batch_size out"),
        ({"accelerator_config": {"split_batches": True}}, "leave split_batches of accelerator_config out"),
    ],
)
def test_arguments_that_would_read_otherwise_are_an_error(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        make_trainer(tmp_path, **changes)


@pytest.mark.slow
def test_two_processes_train_on_the_batches_of_one_and_any_number_goes_on(tmp_path):
    expected, weights = train(make_trainer(tmp_path / "one"))
    script, two = streamed_training.__file__, tmp_path / "two"
    two.mkdir()
    on_two_processes(script, two, 4)
    assert last_checkpoint(two).endswith("checkpoint-3")
    shutil.copytree(two, tmp_path / "copy")
    torch.testing.assert_close(train(make_trainer(tmp_path / "copy"))[1], weights, rtol=0, atol=1e-5)
    on_two_processes(script, two, STEPS)
    parts = [torch.load(two / f"batches-{STEPS}-{rank}.pt") for rank in range(2)]
    together = [torch.cat(batches) for batches in zip(*parts, strict=True)]
    for step in range(7):  # of two batches, each of which is half of one for two processes
        ours = torch.cat(together[2 * step : 2 * step + 2])
        assert sorted(ours.tolist()) == sorted(rows_of(expected)[24 + 8 * step :][:8].tolist())
    torch.testing.assert_close(torch.load(two / f"weights-{STEPS}.pt"), weights, rtol=0, atol=1e-5)
