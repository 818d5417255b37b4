"""Metrics loaded by `evaluate.load`: against the definition of the Hub's metric, and as a `Trainer` uses them."""

import math

import numpy as np
import pytest
import torch
from fixtures_evaluation import TEXTS
from transformers import Trainer, TrainingArguments

from hf_whittle.data import collate_blocks, pack_documents
from hf_whittle.errors import DataError
from hf_whittle.evaluation import log_probabilities, measure_texts, metric_path

evaluate = pytest.importorskip("evaluate", reason="metrics need evaluate: pip install 'hf_whittle[eval]'")
SHORT = [text for text in TEXTS if len(text) < 60]


@pytest.fixture(scope="module")
def metrics():
    return {name: evaluate.load(metric_path(name)) for name in ("perplexity", "bits_per_byte", "word_perplexity")}


def perplexities_as_on_the_hub(model, tokenizer, texts):
    """The metric `perplexity` of the Hub, by its definition: a padded batch with a start token, masked means."""
    start, pad = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    longest = max(map(len, encoded))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in encoded])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in encoded])
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return torch.exp(losses.sum(1) / mask[:, 1:].sum(1)).tolist()


def test_perplexity_is_that_of_the_metric_on_the_hub(metrics, model, tokenizer, teacher_folder):
    found = metrics["perplexity"].compute(predictions=SHORT, model_id=str(teacher_folder))
    expected = perplexities_as_on_the_hub(model, tokenizer, SHORT)
    assert found["perplexities"] == pytest.approx(expected, rel=1e-5)
    assert found["mean_perplexity"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_metrics_of_texts_are_those_of_a_measurement(metrics, model, tokenizer):
    expected = measure_texts(model, tokenizer, TEXTS, block_size=32)
    for name, metric in metrics.items():
        metric.add_batch(predictions=TEXTS[:1])
        metric.add_batch(predictions=TEXTS[1:3])
        metric.add(prediction=TEXTS[3])
        found = metric.compute(model=model, tokenizer=tokenizer, max_length=32)
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-6)


def test_metrics_of_a_trainer_are_those_of_its_loss(metrics, model, tokenizer, tmp_path):
    from datasets import Dataset

    blocks = pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, 32)

    def compute_metrics(prediction):
        given = {"predictions": prediction.predictions, "references": prediction.label_ids}
        return {
            **metrics["perplexity"].compute(**given),
            **metrics["bits_per_byte"].compute(**given, tokenizer=tokenizer),
            **metrics["word_perplexity"].compute(**given, num_words=50),
        }

    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        eval_dataset=blocks,
        data_collator=collate_blocks,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=log_probabilities,
    )
    found = trainer.evaluate()
    predicted = [row[1:] for row in np.asarray(blocks["input_ids"])]
    nats = found["eval_loss"] * sum(map(len, predicted))
    decoded = tokenizer.batch_decode(predicted, skip_special_tokens=True)
    bits = nats / math.log(2) / sum(len(text.encode()) for text in decoded)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-5)
    assert found["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["eval_word_perplexity"] == pytest.approx(math.exp(nats / 50), rel=1e-4)


def test_labels_that_are_left_out_count_nowhere(metrics, model):
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 3:6] = labels[1, 0] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
    found = log_probabilities((output.logits, "other outputs"), labels)
    assert found.shape == labels.shape and not found[labels == -100].any() and not found[:, 0].any()
    result = metrics["perplexity"].compute(predictions=found.numpy(), references=labels.numpy())
    assert result["perplexity"] == pytest.approx(output.loss.exp().item(), rel=1e-5)


def test_a_wrong_use_of_a_metric_is_said(model, tokenizer):
    names = ("perplexity", "bits_per_byte")
    perplexity, bits = (evaluate.load(metric_path(name), keep_in_memory=True) for name in names)
    with pytest.raises(DataError, match=r"shape \(2, 3, 5\) are logits; .*preprocess_logits_for_metrics"):
        perplexity.compute(predictions=np.zeros((2, 3, 5)), references=np.zeros((2, 3), dtype=int))
    with pytest.raises(DataError, match="no references; give the labels"):
        perplexity.compute(predictions=np.zeros((2, 3)))
    for given in ({}, {"model": model}, {"model_id": "x", "model": model, "tokenizer": tokenizer}):
        with pytest.raises(DataError, match="give either model_id, or a model and its tokenizer"):
            perplexity.compute(predictions=SHORT, **given)
    with pytest.raises(DataError, match="text 1 is empty"):
        perplexity.compute(predictions=["x", ""], model=model, tokenizer=tokenizer)
    with pytest.raises(DataError, match="give either num_bytes of the text that was predicted, or the tokenizer"):
        bits.compute(predictions=np.zeros((1, 3)), references=np.ones((1, 3), dtype=int))
    with pytest.raises(DataError, match="there is no metric 'accuracy'; the metrics are bits_per_byte"):
        metric_path("accuracy")
