"""Features of `Trainer` in distillation: precision, checkpointing, padding, documents, streams, logs."""

import importlib.util
import json

import pytest
import torch
from datasets import Dataset
from fixtures_distillation import LENGTH, VOCABULARY, collate, make_arguments, make_blocks, make_model, make_trainer
from fixtures_losses import loss_of_trainers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import EarlyStoppingCallback

from hf_whittle import DistillationConfig, DistillationTrainer
from hf_whittle.cost import flops_per_token
from hf_whittle.data import DocumentCollator, pack_documents
from hf_whittle.loss.divergences import DIVERGENCES

needs_liger = pytest.mark.skipif(not importlib.util.find_spec("liger_kernel"), reason="liger-kernel is not installed")


def trained(trainer):
    trainer.train()
    return trainer.model.state_dict()


def assert_close(first, second, atol=1e-5):
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fused_and_naive_train_alike(tmp_path, divergence):
    fused, naive = (make_trainer(tmp_path, divergence=divergence, loss_chunk_size=5) for _ in range(2))
    with loss_of_trainers("naive"):
        expected = trained(naive)
    assert_close(trained(fused), expected)
    name = "kl" if divergence == "forward_kl" else divergence
    assert logged(fused, name) == pytest.approx(logged(naive, name), rel=1e-4) and logged(fused, name)[0] > 0


@needs_liger
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_liger_trains_alike(tmp_path, divergence):
    ours, theirs = (make_trainer(tmp_path, divergence=divergence) for _ in range(2))
    with loss_of_trainers("liger"):
        expected = trained(theirs)
    assert_close(trained(ours), expected)
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-4)
    assert logged(ours, "cross_entropy") == pytest.approx(logged(theirs, "cross_entropy"), rel=1e-4)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for part in output if isinstance(output, (tuple, list)) else (output,):
            if torch.is_tensor(part):
                self.numel = max(self.numel, part.numel())
        return output


@pytest.mark.parametrize("beta", [0.8, 0.0])
@pytest.mark.parametrize("loss, whole", [("fused", False), ("naive", True)])
def test_logits_of_the_batch_are_never_held_at_once(tmp_path, loss, whole, beta):
    vocabulary = 4000
    models = [make_model(seed, layers=1, vocab_size=vocabulary) for seed in (1, 2)]
    sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
    trainer = make_trainer(tmp_path, *models, loss_chunk_size=4, max_steps=1, beta=beta, **sizes)
    blocks = make_blocks(uneven=False)
    batch = trainer.data_collator(blocks)
    trainer.model.train()
    with Largest() as largest, loss_of_trainers(loss):
        trainer.compute_loss(trainer.model, batch).backward()
    with Largest() as in_evaluation, loss_of_trainers(loss):
        trainer.evaluate(blocks)
    for numel in (largest.numel, in_evaluation.numel):
        assert (numel >= 16 * (LENGTH - 1) * vocabulary) == whole
    if not whole:
        assert largest.numel == vocabulary * 16  # an output matrix


def test_an_evaluation_with_metrics_has_logits_and_the_same_loss(tmp_path):
    blocks = make_blocks()
    shapes = []
    alone = make_trainer(tmp_path).evaluate(blocks)
    trainer = make_trainer(tmp_path)
    trainer.compute_metrics = lambda prediction: shapes.append(prediction.predictions.shape) or {}
    assert trainer.evaluate(blocks)["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
    assert shapes[0][-1] == trainer.model.config.vocab_size


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, checkpointed = (trained(make_trainer(tmp_path, gradient_checkpointing=on)) for on in (False, True))
    assert_close(checkpointed, plain, atol=1e-6)


def test_bfloat16_stays_near_single_precision(tmp_path):
    plain, half = (make_trainer(tmp_path, bf16=on, learning_rate=0.05) for on in (False, True))
    plain.train()
    half.train()
    assert logged(half, "kl") == pytest.approx(logged(plain, "kl"), rel=0.05)
    assert logged(half, "kl") != logged(plain, "kl")
    assert all(weight.dtype == torch.float32 for weight in half.model.parameters())


@pytest.mark.slow
def test_compiled_student_trains_alike(tmp_path):
    """`aot_eager` traces what `inductor` does, and does not wait for a C++ compiler."""
    plain = make_trainer(tmp_path, max_steps=4)
    compiled = make_trainer(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", max_steps=4)
    expected = trained(plain)
    compiled.train()
    assert_close(compiled.accelerator.unwrap_model(compiled.model).state_dict(), expected, atol=1e-4)
    assert logged(compiled, "kl") == pytest.approx(logged(plain, "kl"), rel=1e-3)


def test_logs_count_tokens_and_flops_of_student_and_teacher(tmp_path):
    trainer = make_trainer(tmp_path, blocks=make_blocks(uneven=False))
    trainer.train()
    per_token = 3 * flops_per_token(trainer.model.config, sequence_length=LENGTH)
    per_token += flops_per_token(trainer.teacher.config, sequence_length=LENGTH)
    assert logged(trainer, "num_input_tokens_seen")[:3] == [48, 96, 144]
    assert logged(trainer, "total_flos")[:3] == [48 * per_token, 96 * per_token, 144 * per_token]
    assert all(speed > 0 for speed in logged(trainer, "train_tokens_per_second"))
    plain = make_trainer(tmp_path, beta=0.0)
    plain.train()
    assert logged(plain, "total_flos")[0] == 48 * 3 * flops_per_token(plain.model.config, sequence_length=LENGTH)


def test_counts_go_on_after_an_interruption(tmp_path):
    whole = make_trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    make_trainer(tmp_path / "half", max_steps=4, save_strategy="steps", save_steps=2).train()
    again = make_trainer(tmp_path / "half", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    for name in ("num_input_tokens_seen", "total_flos"):
        assert logged(again, name)[-1] == logged(whole, name)[-1]


def test_early_stop_keeps_the_best_student(tmp_path):
    trainer = make_trainer(
        tmp_path,
        learning_rate=20.0,
        max_steps=12,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_perplexity",
        greater_is_better=False,
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.global_step < 12
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(min(logged(trainer, "eval_perplexity")), rel=1e-6)


def padded(blocks):
    """Collate blocks of any length."""
    longest = max(len(block["input_ids"]) for block in blocks)
    batch = {"input_ids": torch.zeros(len(blocks), longest, dtype=torch.long)}
    batch["attention_mask"], batch["labels"] = (
        torch.zeros_like(batch["input_ids"]),
        torch.full((len(blocks), longest), -100),
    )
    for row, block in enumerate(blocks):
        ids = torch.as_tensor(block["input_ids"])
        for name, values in (("input_ids", ids), ("attention_mask", 1), ("labels", ids)):
            batch[name][row, : len(ids)] = values
    return batch


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length"])
def test_padding_does_not_count_however_batches_are_made(tmp_path, strategy):
    lengths = [3, 12, 5, 7, 12, 4, 9, 2]
    blocks = [
        {"input_ids": block["input_ids"][:n].tolist()} for block, n in zip(make_blocks(False), lengths, strict=False)
    ]

    def trainer(size):
        args = make_arguments(
            DistillationConfig,
            tmp_path,
            train_sampling_strategy=strategy,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
        )
        return DistillationTrainer(
            make_model(1), make_model(2, layers=3), args, train_dataset=Dataset.from_list(blocks), data_collator=padded
        )

    whole, ones = trainer(8), trainer(1)
    assert_close(trained(ones), trained(whole))
    assert logged(ones, "kl") == pytest.approx(logged(whole, "kl"), rel=1e-4)


def test_model_of_model_init_is_the_one_that_learns(tmp_path):
    args = make_arguments(DistillationConfig, tmp_path, train_sampling_strategy="sequential")
    blocks = make_blocks()
    trainer = DistillationTrainer(
        None,
        make_model(2, layers=3),
        args,
        model_init=lambda: make_model(1),
        train_dataset=blocks,
        data_collator=collate,
    )
    assert_close(trained(trainer), trained(make_trainer(tmp_path)), atol=1e-6)


END = 0


def test_documents_in_a_block_do_not_see_each_other(tmp_path):
    """A block of three documents gives the gradient of the three alone."""
    documents = [[5, 6, 7, END], [8, 9, END], [11, 12, 13, 14, END]]
    together = DocumentCollator(END)([{"input_ids": [token for document in documents for token in document]}])
    assert together["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]]
    packed, apart = (make_trainer(tmp_path, blocks=[], temperature=1.5) for _ in range(2))
    for trainer, batches in ((packed, [together]), (apart, [padded([{"input_ids": d}]) for d in documents])):
        trainer.model.train()
        sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=9) for batch in batches).backward()
    for (name, one), other in zip(packed.model.named_parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


class Letters:
    """A tokenizer of one token for each letter."""

    eos_token_id = END

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[1 + ord(letter) % (VOCABULARY - 1) for letter in text] for text in texts]}


def stream():
    documents = Dataset.from_dict({"text": [f"document {i} " * (1 + i % 4) for i in range(60)]})
    return pack_documents(documents.to_iterable_dataset(), Letters(), LENGTH)


def test_streamed_blocks_are_those_of_a_dataset():
    documents = Dataset.from_dict({"text": [f"document {i} " * (1 + i % 4) for i in range(60)]})
    whole = pack_documents(documents, Letters(), LENGTH)
    assert [block["input_ids"].tolist() for block in stream()] == [block["input_ids"].tolist() for block in whole]


@pytest.mark.slow
def test_stream_resumes_exactly(tmp_path):
    def trainer(folder, **changes):
        args = make_arguments(DistillationConfig, folder, max_steps=6, train_sampling_strategy="random", **changes)
        return DistillationTrainer(make_model(1), make_model(2, layers=3), args, train_dataset=stream())

    whole = trainer(tmp_path / "whole")
    expected = trained(whole)
    trainer(tmp_path / "part", save_strategy="steps", save_steps=4).train()
    again = trainer(tmp_path / "part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert_close(again.model.state_dict(), expected, atol=1e-6)
    assert logged(again, "num_input_tokens_seen")[-1] == logged(whole, "num_input_tokens_seen")[-1]


def test_state_of_training_is_json(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert {"kl", "cross_entropy", "total_flos", "num_input_tokens_seen"} <= state["log_history"][0].keys()
