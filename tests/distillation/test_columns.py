"""Columns of a dataset that mask tokens: every trainer uses them or raises an error."""

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fixtures_distillation import make_model
from fixtures_stores import LENGTH, VOCABULARY, make_blocks, make_teacher, store

from hf_whittle import DistillationConfig, DistillationTrainer, GPTNeoXSuperNetForCausalLM, SupernetTrainer
from hf_whittle.data import DocumentCollator, collate_blocks
from hf_whittle.errors import DataError
from hf_whittle.evaluation import as_input_ids
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.training.supernet_trainer import SupernetConfig

ROWS = 4
TEACHERS = ["none", "running", "stored"]


def with_columns(**columns):
    blocks = make_blocks(ROWS)
    for name, value in columns.items():
        blocks = blocks.add_column(name, value.tolist() if torch.is_tensor(value) else value)
    return blocks


def ids():
    return torch.tensor(make_blocks(ROWS)["input_ids"][:])


def some_labels():
    labels = ids()
    labels[0], labels[1, ::2], labels[2, :7] = -100, -100, -100
    return labels


def make_trainer(folder, teacher, dataset, **settings):
    given = {"none": None, "running": make_teacher(), "stored": None}[teacher]
    if teacher == "stored":
        given = store(folder / "store", blocks=make_blocks(ROWS), kind="top-k", k=VOCABULARY)
    settings = {"learning_rate": 1e-2, "max_steps": 2, "weight_decay": 0.0, **settings}
    args = DistillationConfig(
        output_dir=str(folder), per_device_train_batch_size=ROWS, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", beta=0.0 if teacher == "none" else 0.8, alpha=1.0 if teacher == "none" else 0.2, **settings,
    )  # fmt: skip
    return DistillationTrainer(model=make_model(seed=1), teacher_model=given, args=args, train_dataset=dataset)


def make_supernet_trainer(folder, strategy, dataset):
    supernet = GPTNeoXSuperNetForCausalLM(copy.deepcopy(make_teacher().config))
    args = SupernetConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=ROWS, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", strategy=strategy, weight_decay=0.0, learning_rate=1e-2,
    )  # fmt: skip
    return SupernetTrainer(supernet, args, train_dataset=dataset)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def changes(trainer):
    before = weights(trainer)
    trainer.train()
    return any(not torch.equal(before[name], value) for name, value in weights(trainer).items())


def makers():
    for teacher in TEACHERS:
        yield pytest.param(lambda *given, teacher=teacher: make_trainer(given[0], teacher, given[1]), id=teacher)
    for strategy in ("standard", "sandwich"):
        yield pytest.param(lambda *given, name=strategy: make_supernet_trainer(given[0], name, given[1]), id=strategy)


@pytest.mark.parametrize("make", list(makers()))
def test_nothing_is_learned_of_labels_that_do_not_count(tmp_path, make):
    assert not changes(make(tmp_path, with_columns(labels=torch.full((ROWS, LENGTH), -100))))


@pytest.mark.parametrize("make", list(makers()))
def test_labels_that_are_the_inputs_change_nothing(tmp_path, make):
    trained = []
    for dataset in (make_blocks(ROWS), with_columns(labels=ids(), attention_mask=torch.ones_like(ids()))):
        trainer = make(tmp_path, dataset)
        trainer.train()
        trained.append(weights(trainer))
    torch.testing.assert_close(*trained)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_loss_is_that_of_the_labels_that_count(tmp_path, teacher):
    trainer = make_trainer(tmp_path, teacher, with_columns(labels=some_labels()))
    (inputs,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model.train(), dict(inputs))
    labels = inputs["labels"][:, 1:].flatten()
    assert set(map(tuple, inputs["labels"].tolist())) == set(map(tuple, some_labels().tolist()))
    student, target = (
        model(inputs["input_ids"]).logits[:, :-1].flatten(0, 1) for model in (trainer.model.eval(), make_teacher())
    )
    expected = F.cross_entropy(student, labels)
    if teacher != "none":
        t = trainer.args.temperature
        rows = F.kl_div((student / t).log_softmax(-1), (target / t).log_softmax(-1), reduction="none", log_target=True)
        expected = 0.2 * expected + 0.8 * t**2 * rows.sum(-1)[labels != -100].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3 if teacher == "stored" else 1e-5)


@pytest.mark.parametrize("teacher", ["none", "running"])
def test_loss_of_a_padded_block_is_that_of_its_text(tmp_path, teacher):
    mask = torch.ones_like(ids())
    mask[:, 8:] = 0
    padded = make_trainer(tmp_path, teacher, with_columns(attention_mask=mask))
    short = make_trainer(tmp_path, teacher, Dataset.from_dict({"input_ids": ids()[:, :8].tolist()}))
    losses = []
    for trainer in (padded, short):
        (inputs,) = trainer.get_train_dataloader()
        losses.append(trainer.compute_loss(trainer.model.train(), dict(inputs)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_mask_with_a_stored_teacher_is_an_error(tmp_path):
    mask = torch.ones_like(ids())
    mask[:, 8:] = 0
    trainer = make_trainer(tmp_path, "stored", with_columns(attention_mask=mask))
    with pytest.raises(ValueError, match="read all tokens of each block; train without an attention_mask"):
        trainer.train()


def test_a_store_of_blocks_with_labels_is_that_of_the_blocks(tmp_path):
    one = store(tmp_path / "one", blocks=make_blocks(ROWS))
    two = store(tmp_path / "two", blocks=with_columns(labels=some_labels()))
    assert one.settings == two.settings


@pytest.mark.parametrize("column", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_other_libraries_are_refused(tmp_path, column):
    dataset = with_columns(**{column: torch.ones_like(ids())})
    for make in (
        lambda: make_trainer(tmp_path, "none", dataset),
        lambda: make_supernet_trainer(tmp_path, "ats", dataset),
    ):
        with pytest.raises(DataError, match=f"the column '{column}' would not be read: mask .* by a column 'labels'"):
            make()


def test_an_evaluation_of_labels_that_do_not_count_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, "running", make_blocks(ROWS))
    with pytest.raises(DataError, match="no label of a batch counts in the evaluation"):
        trainer.evaluate(with_columns(labels=torch.full((ROWS, LENGTH), -100)))


def test_evaluation_is_of_the_labels_that_count(tmp_path):
    trainer = make_trainer(tmp_path, "running", make_blocks(ROWS), per_device_eval_batch_size=ROWS)
    found = trainer.evaluate(with_columns(labels=some_labels()))["eval_loss"]
    logits = trainer.model.eval()(ids()).logits[:, :-1].flatten(0, 1)
    assert found == pytest.approx(F.cross_entropy(logits, some_labels()[:, 1:].flatten()).item(), rel=1e-5)


BLOCKS = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [1, 2, 3, 4]}]


def test_a_batch_has_what_its_blocks_say():
    batch = collate_blocks([{**block, "position_ids": [0, 1, 0, 1], "labels": [9, 9, -100, 9]} for block in BLOCKS])
    assert {name: value.tolist()[0] for name, value in batch.items()} == {
        "input_ids": [5, 6, 7, 8],
        "position_ids": [0, 1, 0, 1],
        "labels": [9, 9, -100, 9],
    }


def test_what_a_mask_leaves_out_has_no_label():
    masked = collate_blocks([{**block, "attention_mask": [1, 1, 1, 0]} for block in BLOCKS])
    assert masked["labels"].tolist() == [[5, 6, 7, -100], [1, 2, 3, -100]] and not masked["attention_mask"][:, -1].any()
    whole = collate_blocks([{**block, "attention_mask": [1] * 4, "token_type_ids": [0] * 4} for block in BLOCKS])
    assert whole.keys() == {"input_ids", "labels"}


def test_labels_count_where_documents_do_not_see_each_other():
    batch = DocumentCollator(6)([{**block, "labels": [1, -100, 3, 4]} for block in BLOCKS])
    assert batch["labels"].tolist() == [[-100, -100, -100, 4], [-100, -100, 3, 4]]


@pytest.mark.parametrize(
    "collate, blocks, message",
    [
        (collate_blocks, [BLOCKS[0], {"input_ids": [1]}], r"'input_ids' has \[1, 4\] entries in blocks of \[1, 4\]"),
        (collate_blocks, [{**BLOCKS[0], "labels": [1]}], r"'labels' has \[1\] entries in blocks of \[4\] tokens"),
        (collate_blocks, [{**BLOCKS[0], "labels": [1] * 4}, BLOCKS[1]], "every block needs numbers in 'labels'"),
        (collate_blocks, [{**BLOCKS[0], "labels": None}], "every block needs numbers in 'labels'"),
        (collate_blocks, [{**BLOCKS[0], "text": "x"}], "got text too, which would not be read"),
        (collate_blocks, [{**BLOCKS[0], "token_type_ids": [0, 0, 1, 1]}], "got token_type_ids too"),
        (DocumentCollator(6), [{**BLOCKS[0], "position_ids": [0] * 4}], "and the blocks have 'position_ids'"),
        (DocumentCollator(6), [{**BLOCKS[0], "attention_mask": [1, 1, 1, 0]}], "and the blocks have 'attention_mask'"),
    ],
)
def test_blocks_that_cannot_be_read_are_an_error(collate, blocks, message):
    with pytest.raises(DataError, match=message):
        collate(blocks)


def test_perplexity_takes_columns_that_say_nothing():
    plain = with_columns(
        labels=ids(), attention_mask=torch.ones_like(ids()), position_ids=torch.arange(LENGTH).expand(ROWS, -1)
    )
    assert torch.equal(as_input_ids(plain, VOCABULARY), ids())


@pytest.mark.parametrize(
    "column, value",
    [
        ("labels", some_labels()),
        ("attention_mask", (torch.arange(LENGTH) < 8).long().expand(ROWS, -1)),
        ("position_ids", (torch.arange(LENGTH) % 5).expand(ROWS, -1)),
    ],
)
def test_perplexity_refuses_columns_that_leave_tokens_out(column, value):
    supernet = GPTNeoXSuperNetForCausalLM(copy.deepcopy(make_teacher().config))
    with pytest.raises(DataError, match=f"the column '{column}' masks, moves or relabels tokens"):
        Perplexity(supernet, with_columns(**{column: value}))


@pytest.mark.parametrize(
    "blocks, message",
    [
        (Dataset.from_dict({"input_ids": [[1, 2], [3]]}), "not all of the same length in 'input_ids'"),
        (Dataset.from_dict({"text": ["a"]}), r"no column 'input_ids', only \['text'\]; use pack_documents"),
        (make_blocks(2).to_iterable_dataset(), "expected a datasets.Dataset .*, got a IterableDataset"),
    ],
)
def test_blocks_that_are_none_are_an_error(blocks, message):
    with pytest.raises(DataError, match=message):
        as_input_ids(blocks, VOCABULARY)
