"""Our trainers check before training that they can save, and lock their output folder."""

import contextlib

import pytest
import torch
from fixtures_disk import largest_file
from fixtures_training import make_blocks, make_callback, make_supernet
from fixtures_training import make_trainer as make_plain_trainer
from small_supernet_training import collate, make_space
from small_supernet_training import make_blocks as make_labeled_blocks

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    ParameterBin,
    SearchSpace,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
    search_subnets,
)
from hf_whittle.errors import BinError, CheckpointError, DataError, OutputError
from hf_whittle.files.locks import folder_lock
from hf_whittle.training.strategies import smallest_subnet

SETTINGS = {
    "max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True,
    "disable_tqdm": True, "remove_unused_columns": False,
}  # fmt: skip


def make_trainer(kind, folder, **changes):
    """One of our trainers on a tiny model."""
    model = make_supernet()
    data = {"train_dataset": make_labeled_blocks(), "data_collator": collate}
    if kind is SupernetTrainer:
        args = SupernetConfig(output_dir=str(folder), **{**SETTINGS, **changes})
        return SupernetTrainer(model, args, search_space=make_space(model), **data)
    args = DistillationConfig(output_dir=str(folder), beta=0.0, **{**SETTINGS, **changes})
    return DistillationTrainer(extract_subnet(model, smallest_subnet(make_space(model))), args=args, **data)


BOTH = pytest.mark.parametrize("kind", [DistillationTrainer, SupernetTrainer])


@BOTH
def test_a_model_that_could_not_be_saved_is_not_trained(tmp_path, kind):
    trainer = make_trainer(kind, tmp_path / "out")
    model = trainer.accelerator.unwrap_model(trainer.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.generation_config.temperature = 0.5
    with pytest.raises(CheckpointError, match=r"generation configuration contradicts itself.*generation_config.json"):
        trainer.train()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):  # transformers would refuse to save it
        model.save_pretrained(tmp_path / "saved")
    model.generation_config.do_sample = True
    trainer.train()


@pytest.mark.slow
@BOTH
def test_a_folder_that_is_written_already_is_an_error_before_the_first_step(tmp_path, kind, run_python):
    trainer = make_trainer(kind, tmp_path / "out")
    script = """
        import sys
        from hf_whittle.files.locks import folder_lock
        with folder_lock(sys.argv[1]):
            print("held")
    """
    held = []
    step = trainer.training_step

    def during(*args, **kwargs):
        with pytest.raises(AssertionError, match="is being written by another process"):
            run_python(script, tmp_path / "out")
        held.append(True)
        return step(*args, **kwargs)

    trainer.training_step = during
    trainer.train()
    assert held and run_python(script, tmp_path / "out") == "held\n"


@BOTH
def test_a_training_that_writes_nothing_needs_no_folder_of_its_own(tmp_path, kind):
    trainer = make_trainer(kind, tmp_path / "out", save_strategy="no", max_steps=1)
    locked = []
    step = trainer.training_step

    def during(*args, **kwargs):
        locked.append((tmp_path / "out" / "_hf_whittle.lock").exists())
        return step(*args, **kwargs)

    trainer.training_step = during
    trainer.train()
    assert locked == [False]


@BOTH
def test_an_output_folder_that_cannot_be_made_is_an_output_error(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"could not write .*out: Not a directory.*in the way"):
        make_trainer(kind, tmp_path / "file" / "out")


@pytest.mark.slow
@BOTH
def test_a_checkpoint_that_has_no_room_is_one_error_and_training_goes_on_after(tmp_path, kind, monkeypatch):
    """The operating system refuses files of more than 5 kB while a checkpoint is written."""
    whole = make_trainer(kind, tmp_path / "whole")
    whole.train()
    trainer = make_trainer(kind, tmp_path / "out")
    save = kind._save_optimizer_and_scheduler

    def with_little_room(trainer, folder):
        with largest_file(5_000) if trainer.state.global_step == 2 else contextlib.nullcontext():
            save(trainer, folder)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_save_optimizer_and_scheduler", with_little_room)
        with pytest.raises(OutputError, match=r"could not write .*out.*Files already written are kept.*same command"):
            trainer.train()
    again = make_trainer(kind, tmp_path / "out")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    expected = whole.accelerator.unwrap_model(whole.model).state_dict()
    got = again.accelerator.unwrap_model(again.model).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


# A search at the end of training


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"bin": ParameterBin(1e9, 2e9)}, BinError, "1e\\+09|1,000,000,000"),
        ({"space": {"layer_wises": True}}, TypeError, "layer_wises"),
        ({"eval_dataset": make_blocks(0)}, DataError, "block"),
        ({"fitness": lambda supernet: lambda subnet: 1 / 0}, ZeroDivisionError, "division"),
    ],
)
def test_a_search_that_would_fail_at_the_end_of_training_fails_before_its_first_step(
    tmp_path, changes, error, message, monkeypatch
):
    callback = make_callback(**{name: value for name, value in changes.items() if name != "bin"})
    callback._bin = changes.get("bin", callback._bin)
    trainer = make_plain_trainer(tmp_path, [callback])
    monkeypatch.setattr(trainer, "training_step", lambda *args, **kwargs: pytest.fail("trained already"))
    with pytest.raises(error, match=message):
        trainer.train()


def test_a_search_whose_folder_cannot_be_written_fails_before_training(tmp_path):
    (tmp_path / "subnet_search").write_text("in the way")
    with pytest.raises(OutputError, match=r"could not write .*subnet_search: .*in the way"):
        make_plain_trainer(tmp_path, [make_callback()]).train()


@pytest.mark.slow
def test_a_search_in_a_folder_that_is_written_already_is_an_error_in_every_way_in(tmp_path, run_warm):
    script = """
        import sys
        sys.path[:0] = sys.argv[2:]
        from fixtures_training import BIN, CONFIG, make_supernet
        from hf_whittle import SearchSpace, search_subnets
        from hf_whittle.errors import OutputError
        model = make_supernet()
        space = SearchSpace.from_config(model.config, layer_wise=True)
        try:
            search_subnets(None, space, bin=BIN, config=CONFIG, fitness=lambda subnet: 0.0, output_dir=sys.argv[1])
        except OutputError as error:
            print(error)
    """
    import fixtures_training

    tests = str(fixtures_training.__file__).rpartition("/")[0]
    with folder_lock(tmp_path):
        assert "is being written by another process" in run_warm(script, tmp_path, tests)
        assert [path.name for path in tmp_path.iterdir()] == ["_hf_whittle.lock"]
    model = make_supernet()
    space = SearchSpace.from_config(model.config, layer_wise=True)
    found = []

    def fitness(subnet):
        if not found:
            found.append(run_warm(script, tmp_path, tests))
        return 0.0

    result = search_subnets(
        None, space, bin=fixtures_training.BIN, config=fixtures_training.CONFIG, fitness=fitness, output_dir=tmp_path,
        progress=False,
    )  # fmt: skip
    assert "is being written by another process" in found[0]
    lines = (tmp_path / "candidates.jsonl").read_text().splitlines()
    assert len(lines) == len(result.evaluations) and not (tmp_path / "_hf_whittle.lock").exists()
