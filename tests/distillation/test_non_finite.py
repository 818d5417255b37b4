"""NaN and infinite losses: their cause is named, and training stops or skips the batch."""

import re

import pytest
import torch
from datasets import Dataset
from fixtures_distillation import make_arguments, make_blocks, make_model, make_trainer
from transformers import TrainerCallback

from hf_whittle import DistillationConfig, DistillationTrainer
from hf_whittle.errors import NonFiniteLossError


def break_at(trainer, step, which="student"):
    """Make a model return NaN in the forward pass of one step, counted from 1."""
    model, count = (trainer.teacher if which == "teacher" else trainer.model), [0]

    def poison(module, arguments, output):
        if module.training or which == "teacher":
            count[0] += 1
        return output * torch.nan if count[0] == step else output

    model.gpt_neox.final_layer_norm.register_forward_hook(poison)


@pytest.mark.parametrize(
    "which, blamed",
    [
        ("student", "from the student, as the teacher's output is finite"),
        ("teacher", "the teacher's output contains NaN"),
    ],
)
def test_nan_stops_with_step_rows_checkpoint_and_who(tmp_path, which, blamed):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=1)
    break_at(trainer, 3, which)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "the loss is nan at step 3" in message and blamed in message
    assert "rows [8, 9, 10, 11] of train_dataset" in message
    assert f"last good checkpoint, {tmp_path}/checkpoint-2," in message


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_nan_without_checkpoints_says_so(tmp_path, beta):
    trainer = make_trainer(tmp_path / "none", beta=beta)
    break_at(trainer, 1)
    with pytest.raises(
        NonFiniteLossError,
        match=r"at step 1, .*from the student.*none has no good checkpoint, with a lower",
    ):
        trainer.train()


def test_weights_with_nan_or_inf_are_named(tmp_path):
    student = make_model(seed=1)
    with torch.no_grad():
        student.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteLossError, match=r"of the student contain NaN or Inf, gpt_neox\.layers\.1\.mlp"):
        make_trainer(tmp_path, student, non_finite_loss="skip").train()


@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_skipped_batch_leaves_the_weights_and_training_goes_on(tmp_path, which, beta):
    if which == "teacher" and beta == 0:
        return
    blocks = make_blocks(uneven=False)
    trainer = make_trainer(tmp_path, blocks=blocks, max_steps=3, beta=beta, non_finite_loss="skip")
    break_at(trainer, 2, which)
    trainer.train()
    without = make_trainer(tmp_path, blocks=blocks[:4] + blocks[8:], max_steps=2, beta=beta)
    without.train()
    for name, value in without.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=0, atol=1e-6)
    if beta:
        assert all(row["kl"] == row["kl"] for row in trainer.state.log_history if "kl" in row)


def test_skipped_part_of_an_accumulated_step_counts_as_nothing(tmp_path):
    blocks = make_blocks(uneven=False)
    trainer = make_trainer(
        tmp_path,
        blocks=blocks,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        non_finite_loss="skip",
    )
    break_at(trainer, 2)
    trainer.train()
    half = make_trainer(tmp_path, blocks=blocks[:2], max_steps=1, per_device_train_batch_size=2, learning_rate=0.1)
    half.train()
    for name, value in half.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_unknown_choice_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="non_finite_loss must be one of stop, skip, got 'ignore'"):
        make_trainer(tmp_path, non_finite_loss="ignore")


def test_a_skipped_batch_leaves_the_logs_of_the_others(tmp_path):
    blocks = make_blocks(uneven=False)
    skipping, plain = (
        make_trainer(tmp_path, blocks=blocks, learning_rate=0.0, max_steps=4, logging_steps=4, non_finite_loss="skip")
        for _ in range(2)
    )
    break_at(skipping, 3)
    skipping.train()
    plain.train()
    logs = [next(row for row in trainer.state.log_history if "kl" in row) for trainer in (skipping, plain)]
    assert logs[0]["kl"] == pytest.approx(logs[1]["kl"], rel=0.2) and logs[0]["kl"] != logs[1]["kl"]
    assert logs[0]["cross_entropy"] == pytest.approx(logs[1]["cross_entropy"], rel=0.2)


def test_a_skipped_batch_leaves_the_projections_of_hidden_states(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, hidden_weight=0.5, non_finite_loss="skip")
    before = {name: weight.clone() for name, weight in trainer._hidden.state_dict().items()}
    break_at(trainer, 1)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer._hidden.state_dict().items())


def test_streamed_blocks_are_named_by_their_first_tokens(tmp_path):
    blocks = Dataset.from_dict({"input_ids": [block["input_ids"].tolist() for block in make_blocks(False)]})
    args = make_arguments(DistillationConfig, tmp_path)
    trainer = DistillationTrainer(make_model(1), make_model(2), args, train_dataset=blocks.to_iterable_dataset())
    break_at(trainer, 1)
    first = blocks[0]["input_ids"][:8]
    with pytest.raises(NonFiniteLossError, match=re.escape(f"the blocks of the batch begin with [{first}")):
        trainer.train()


def test_checkpoint_of_broken_weights_is_not_called_good(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=1)

    class Break(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:  # the second step
                with torch.no_grad():
                    model.lm_head.weight[0, 0] = torch.nan

    trainer.add_callback(Break)
    with pytest.raises(
        NonFiniteLossError, match=rf"step 3, since weights .*lm_head.*last good checkpoint, {tmp_path}/checkpoint-1,"
    ):
        trainer.train()


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_nothing_of_a_batch_is_kept_after_it(tmp_path, beta):
    trainer = make_trainer(tmp_path, beta=beta)
    trainer.train()
    assert trainer._given is None and trainer._loss is None
