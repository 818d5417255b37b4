"""Losses between hidden states, and the projections that are trained beside the student."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from fixtures_distillation import make_arguments, make_blocks, make_model, make_trainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_whittle import DistillationConfig, DistillationTrainer, HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.errors import CheckpointError, SubnetError
from hf_whittle.loss.hidden import HiddenStateLoss, layer_outputs

SUBNET = SubnetConfig((1, 3, 4, 8, 9, 10, 12, 15), (0, 2), 1, 16)


def trainer_with(folder, kind="mse", weight=0.5, **changes):
    teacher = make_model(seed=2, layers=3)
    student = extract_subnet(teacher, SUBNET)
    return make_trainer(folder, student, teacher, hidden_weight=weight, hidden_loss=kind, **changes)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_first_value_is_the_distance_of_the_kept_channels(tmp_path, kind):
    trainer = trainer_with(tmp_path, kind, max_steps=1)
    batch = torch.stack([block["input_ids"] for block in make_blocks()[:4]])
    labels = torch.stack([block["labels"] for block in make_blocks()[:4]])[:, 1:]
    rows = F.pad(labels, (0, 1), value=-100) != -100
    with torch.no_grad(), layer_outputs(trainer.model) as own, layer_outputs(trainer.teacher) as others:
        trainer.model(input_ids=batch)
        trainer.teacher(input_ids=batch)
    expected = []
    for states, layer in zip(own, SUBNET.layers, strict=True):
        lifted = torch.zeros_like(others[layer])
        lifted[..., list(SUBNET.hidden_size)] = states
        ours, theirs = lifted[rows], others[layer][rows]
        distance = (ours - theirs).square().mean(-1) if kind == "mse" else 1 - F.cosine_similarity(ours, theirs)
        expected.append(distance.mean())
    trainer.train()
    row = next(row for row in trainer.state.log_history if "hidden_loss" in row)
    assert row["hidden_loss"] == pytest.approx((sum(expected) / 2).item(), rel=1e-4)
    whole = 0.2 * row["cross_entropy"] + 0.8 * 0.9**2 * row["kl"] + 0.5 * row["hidden_loss"]
    assert row["loss"] == pytest.approx(whole, rel=1e-4)


def test_whole_teacher_as_its_own_student_has_no_distance(tmp_path):
    teacher = make_model(seed=2, layers=3)
    student = extract_subnet(teacher, SubnetConfig.full(teacher.config))
    trainer = make_trainer(tmp_path, student, teacher, hidden_weight=1.0, max_steps=1)
    trainer.train()
    found = next(row["hidden_loss"] for row in trainer.state.log_history if "hidden_loss" in row)
    assert found == pytest.approx(0, abs=1e-6)


def test_hidden_states_of_each_architecture_are_compared(tmp_path, each_supernet):
    config = each_supernet.config
    student = extract_subnet(each_supernet, SubnetConfig.full(config).with_layers([0, config.num_hidden_layers - 1]))
    trainer = make_trainer(tmp_path, student, each_supernet, hidden_weight=1.0, max_steps=1)
    batch = torch.stack([block["input_ids"] for block in make_blocks()[:2]])
    with torch.no_grad(), layer_outputs(trainer.model) as own, layer_outputs(trainer.teacher) as others:
        trainer.model(input_ids=batch)
        trainer.teacher(input_ids=batch)
    assert (len(own), len(others)) == (2, config.num_hidden_layers)
    torch.testing.assert_close(own[0], others[0])
    trainer.train()
    assert next(row["hidden_loss"] for row in trainer.state.log_history if "hidden_loss" in row) > 0


def test_projections_learn_and_are_in_the_checkpoint_but_not_in_the_student(tmp_path):
    trainer = trainer_with(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    before = {name: value.clone() for name, value in trainer._hidden.state_dict().items()}
    trainer.train()
    for name, value in trainer._hidden.state_dict().items():
        assert not torch.equal(value, before[name])
    checkpoint = tmp_path / "checkpoint-2"
    assert load_file(checkpoint / "hidden_projections.safetensors").keys() == before.keys()
    assert not any("projection" in name for name in load_file(checkpoint / "model.safetensors"))
    trainer.save_model(tmp_path / "final")
    assert not (tmp_path / "final" / "hidden_projections.safetensors").exists()


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = trainer_with(tmp_path / "whole", max_steps=4, optim="adamw_torch")
    whole.train()
    half = trainer_with(tmp_path / "half", max_steps=4, save_strategy="steps", save_steps=2, optim="adamw_torch")
    half.train()
    again = trainer_with(tmp_path / "half", max_steps=4, optim="adamw_torch")
    again.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
    for name, value in whole._hidden.state_dict().items():
        torch.testing.assert_close(again._hidden.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def test_gradient_accumulation_changes_nothing(tmp_path):
    whole = trainer_with(tmp_path)
    quarters = trainer_with(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train()
    quarters.train()
    for name, value in whole._hidden.state_dict().items():
        torch.testing.assert_close(quarters._hidden.state_dict()[name], value, rtol=0, atol=1e-5)


def test_subnet_is_read_from_the_folder_of_the_student(tmp_path):
    teacher = make_model(seed=2, layers=3)
    teacher.save_pretrained(tmp_path / "teacher")
    extract_subnet(str(tmp_path / "teacher"), SUBNET, tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    trainer = make_trainer(tmp_path, student, teacher, hidden_weight=0.5)
    assert trainer._hidden.layers == (0, 2)


def test_a_student_of_unknown_origin_is_an_error(tmp_path):
    with pytest.raises(SubnetError, match=r"needs the layers of the teacher that the student keeps; give subnet="):
        make_trainer(tmp_path, make_model(seed=1), hidden_weight=0.5)


def test_a_subnet_of_another_teacher_is_an_error(tmp_path):
    with pytest.raises(SubnetError):
        make_trainer(
            tmp_path, extract_subnet(make_model(seed=2, layers=5), SubnetConfig(8, (0, 4), 1, 16)), hidden_weight=1.0
        )


def test_an_optimizer_of_ones_own_would_leave_the_projections_out(tmp_path):
    teacher = make_model(seed=2, layers=3)
    student = extract_subnet(teacher, SUBNET)
    args = make_arguments(DistillationConfig, tmp_path, hidden_weight=1.0)
    optimizers = torch.optim.SGD(student.parameters(), 0.1), None
    with pytest.raises(ValueError, match="needs the Trainer's own optimizer"):
        DistillationTrainer(student, teacher, args, optimizers=optimizers)


def test_checkpoint_without_projections_is_named(tmp_path):
    teacher = make_model(seed=2, layers=3)
    changes = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, extract_subnet(teacher, SUBNET), teacher, **changes).train()
    with pytest.raises(CheckpointError, match="is from a training with hidden_weight=0"):
        trainer_with(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_projection_starts_as_the_choice_of_channels():
    loss = HiddenStateLoss(SubnetConfig(3, (1,), 1, 4), (3, 5))
    assert torch.equal(loss.projections[0].weight, torch.eye(5)[:, :3])


@pytest.mark.slow
def test_student_healed_into_principal_components_has_no_channels_to_compare(tmp_path):
    teacher = make_model(seed=2, layers=3)
    blocks = torch.stack([block["input_ids"] for block in make_blocks()])
    student = extract_subnet(teacher, SUBNET, heal=True, calibration_dataset=blocks, progress=False)
    student.healing = dataclasses.replace(student.healing, is_healed=True)
    with pytest.raises(SubnetError, match="healed to carry principal components instead; heal it with"):
        make_trainer(tmp_path / "runs", student, teacher, hidden_weight=0.5)
    student.healing = dataclasses.replace(student.healing, is_healed=False)
    make_trainer(tmp_path / "runs", student, teacher, hidden_weight=0.5)
    settings = HealingConfig(basis="channels")
    extract_subnet(teacher, SUBNET, tmp_path / "kept", heal=settings, calibration_dataset=blocks, progress=False)
    make_trainer(tmp_path / "runs", AutoModelForCausalLM.from_pretrained(tmp_path / "kept"), teacher, hidden_weight=0.5)
